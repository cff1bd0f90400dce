"""Quick average precision while training, at the resolution of the mask features.

The judge of record is :mod:`mca_perception.segmentation.evaluation`, in original pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mca_perception.segmentation.average_precision import Evaluations
from mca_perception.segmentation.operating_point import best_threshold
from mca_perception.segmentation.postprocess import CONTAINERS, select_instances

MIN_SCORE = 0.02

Found = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]
"""Scores ``[K]``, labels ``[K]`` and masks ``[K, h, w]`` of one image."""
Truth = tuple[NDArray[np.bool_], NDArray[np.int64]]
"""Masks ``[M, h, w]`` and labels ``[M]`` of one image."""


def stride4_average_precision(
    predictions: list[tuple[NDArray[Any], ...]],
    truths: list[Truth],
    labels: Sequence[str] = ("Object",),
) -> dict[str, float]:
    """Figures of :func:`mask_average_precision` from candidates that may be duplicates.

    Args:
        predictions: per image ``(scores [K], labels [K], mask_logits [K, h, w])``.
        truths: per image ``(masks [M, h, w], labels [M])``.
        labels: names of the classes.
    """

    def selected() -> Iterator[tuple[Found, Truth]]:
        for (scores, kinds, logits), truth in zip(predictions, truths, strict=True):
            kinds = kinds.astype(np.int64)
            kept = select_instances(
                scores, kinds, logits, score_threshold=MIN_SCORE, nms_iou=0.5, max_objects=100
            )
            yield (scores[kept], kinds[kept], logits[kept] > 0), truth

    return mask_average_precision(selected(), labels)


def mask_average_precision(
    images: Iterable[tuple[Found, Truth]], labels: Sequence[str] = ("Object",)
) -> dict[str, float]:
    """Figures of instances whose duplicates are removed; one image is in memory at a time.

    Args:
        images: what was found in each image, and its truth.
        labels: names of the classes.

    Returns:
        COCO ``mask_map``, ``mask_map50`` and ``mask_map75``, classes averaged; with several classes also
        ``mask_map50_NAME`` of each that is annotated. ``score_threshold`` with the best F1 at IoU 0.5 over the
        classes that are not containers, unless nothing was found.
    """
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    sizes: list[tuple[int, ...]] = []
    for image_id, ((scores, kinds, found), (masks, true_kinds)) in enumerate(images, 1):
        sizes.append(found.shape[1:])
        annotations += [
            {"image_id": image_id, "category_id": int(kind) + 1, "segmentation": _encode(mask)}
            for mask, kind in zip(masks, true_kinds, strict=True)
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
    if len(labels) > 1:
        for category in evaluations.categories:
            figures[f"mask_map50_{labels[category - 1]}"] = curves.average(0.5, [category]) or 0.0
    counted = [c for c in evaluations.categories if labels[c - 1] not in CONTAINERS]
    threshold = best_threshold(evaluations, counted)["best_f1_threshold"]
    return figures if threshold is None else {**figures, "score_threshold": round(threshold, 3)}


def _encode(mask: NDArray[np.bool_]) -> Any:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
