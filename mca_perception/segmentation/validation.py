"""Quick average precision while training, at the resolution of the mask features.

The judge of record is :mod:`mca_perception.segmentation.evaluation`, in original pixels.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mca_perception.segmentation.postprocess import select_instances

MIN_SCORE = 0.02


def stride4_average_precision(
    predictions: list[tuple[NDArray[Any], ...]],
    truths: list[tuple[NDArray[np.bool_], NDArray[np.int64]]],
) -> dict[str, float]:
    """COCO mask AP50, AP75 and AP, classes averaged, and the score threshold with the best F1 at IoU 0.5.

    Args:
        predictions: per image ``(scores [K], labels [K], mask_logits [K, h, w])``.
        truths: per image ``(masks [M, h, w], labels [M])``.
    """
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image_id, ((masks, labels), (scores, kinds, logits)) in enumerate(
        zip(truths, predictions, strict=True), 1
    ):
        for mask, label in zip(masks, labels, strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "segmentation": rle,
                    "area": float(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": 0,
                }
            )
        kinds = kinds.astype(np.int64)
        kept = select_instances(
            scores, kinds, logits, score_threshold=MIN_SCORE, nms_iou=0.5, max_objects=100
        )
        for index in kept:
            rle = coco_mask.encode(np.asfortranarray((logits[index] > 0).astype(np.uint8)))
            detections.append(
                {
                    "image_id": image_id,
                    "category_id": int(kinds[index]) + 1,
                    "segmentation": rle,
                    "score": float(scores[index]),
                }
            )
    if not annotations or not detections:
        return {"mask_map": 0.0, "mask_map50": 0.0, "mask_map75": 0.0}
    sizes = [logits.shape[1:] for _, _, logits in predictions]
    with redirect_stdout(io.StringIO()):
        evaluation = _evaluate(annotations, detections, sizes)
    stats = dict(zip(("mask_map", "mask_map50", "mask_map75"), map(float, evaluation.stats[:3]), strict=True))
    return {**stats, "score_threshold": _best_threshold(evaluation)}


def _best_threshold(evaluation: COCOeval) -> float:
    """Score at the point of the AP50 precision-recall curve with the best F1, classes averaged."""
    precision = evaluation.eval["precision"][0, :, :, 0, -1].clip(min=0)
    recall = evaluation.params.recThrs[:, None]
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    scores = evaluation.eval["scores"][0, :, :, 0, -1]
    best = f1.argmax(axis=0)
    return round(float(scores[best, np.arange(scores.shape[1])].mean()), 3)


def _evaluate(
    annotations: list[dict[str, Any]], detections: list[dict[str, Any]], sizes: list[tuple[int, ...]]
) -> COCOeval:
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": index, "height": height, "width": width} for index, (height, width) in enumerate(sizes, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": label} for label in sorted({entry["category_id"] for entry in annotations})],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(detections), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation
