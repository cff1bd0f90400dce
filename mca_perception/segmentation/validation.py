"""Quick average precision while training, at the resolution of the mask features.

The judge of record is :mod:`mca_perception.segmentation.evaluation`, in original pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mca_perception.segmentation.average_precision import Evaluations
from mca_perception.segmentation.operating_point import best_threshold
from mca_perception.segmentation.postprocess import select_instances

MIN_SCORE = 0.02

Found = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]
"""Scores ``[K]``, labels ``[K]`` and masks ``[K, h, w]`` of one image."""
Truth = tuple[NDArray[np.bool_], NDArray[np.int64]]
"""Masks ``[M, h, w]`` and labels ``[M]`` of one image."""


def stride4_average_precision(
    predictions: list[tuple[NDArray[Any], ...]],
    truths: list[Truth],
) -> dict[str, float]:
    """COCO mask AP50, AP75 and AP, classes averaged, and the score threshold with the best F1 at IoU 0.5.

    Args:
        predictions: per image ``(scores [K], labels [K], mask_logits [K, h, w])``.
        truths: per image ``(masks [M, h, w], labels [M])``.
    """

    def selected() -> Iterator[tuple[Found, Truth]]:
        for (scores, labels, logits), truth in zip(predictions, truths, strict=True):
            labels = labels.astype(np.int64)
            kept = select_instances(
                scores, labels, logits, score_threshold=MIN_SCORE, nms_iou=0.5, max_objects=100
            )
            yield (scores[kept], labels[kept], logits[kept] > 0), truth

    return mask_average_precision(selected())


def mask_average_precision(images: Iterable[tuple[Found, Truth]]) -> dict[str, float]:
    """The same figures of instances whose duplicates are removed already; one image is in memory at a time."""
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    sizes: list[tuple[int, ...]] = []
    for image_id, ((scores, kinds, found), (masks, labels)) in enumerate(images, 1):
        sizes.append(found.shape[1:])
        annotations += [
            {"image_id": image_id, "category_id": int(label) + 1, "segmentation": _encode(mask)}
            for mask, label in zip(masks, labels, strict=True)
        ]
        detections += [
            {
                "image_id": image_id,
                "category_id": int(kind) + 1,
                "segmentation": _encode(mask),
                "score": float(score),
            }
            for score, kind, mask in zip(scores, kinds, found, strict=True)
        ]
    truth = {
        "images": [{"id": n, "height": height, "width": width} for n, (height, width) in enumerate(sizes, 1)],
        "annotations": annotations,
        "categories": [{"id": label} for label in sorted({entry["category_id"] for entry in annotations})],
    }
    evaluations = Evaluations.of(truth, detections, "segm")
    curves = evaluations.curves()
    names = {"mask_map": None, "mask_map50": 0.5, "mask_map75": 0.75}
    figures = {name: curves.average(iou) or 0.0 for name, iou in names.items()}
    threshold = best_threshold(evaluations, evaluations.categories)["best_f1_threshold"]
    return figures if threshold is None else {**figures, "score_threshold": round(threshold, 3)}


def _encode(mask: NDArray[np.bool_]) -> Any:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
