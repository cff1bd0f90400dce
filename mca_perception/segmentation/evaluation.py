"""Segmentation figures of a data set, all from pycocotools: overall, by size and by objects per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.segmentation.average_precision import (
    AREA_UNIT,
    BOOTSTRAP_SAMPLES,
    EVERY_SIZE,
    Curves,
    Evaluations,
    Progress,
    bootstrap_ap50,
)
from mca_perception.segmentation.detections import Detection

__all__ = ["COUNT_BINS", "OBJECT", "Evaluated", "evaluate_detections"]

OBJECT = "Object"
"""Class that is also scored alone; it is what is counted in an image."""

COUNT_BINS = ((0, 4), (5, 9), (10, 14), (15, 25), (26, None))
"""Objects per image, inclusive."""

_SMALL, _LARGE = AREA_UNIT / 64, AREA_UNIT / 16
_SIZES = {**EVERY_SIZE, "small": (0.0, _SMALL), "medium": (_SMALL, _LARGE), "large": (_LARGE, 1e10)}


@dataclass(frozen=True)
class Evaluated:
    """Outcome of an evaluation.

    Attributes:
        metrics: figures for ``metrics.json``.
        masks: the evaluations of masks behind them.
        precision_recall: precision at IoU 0.5 by category name, at recall 0, 0.01, ..., 1.
    """

    metrics: dict[str, Any]
    masks: Evaluations
    precision_recall: dict[str, NDArray[np.float64]]


def evaluate_detections(
    truth: dict[str, Any],
    detections: Sequence[Detection],
    *,
    seed: int = 0,
    samples: int = BOOTSTRAP_SAMPLES,
    progress: Progress = lambda items, _: items,
) -> Evaluated:
    """Average precision over all categories of a data set, and of the class ``Object`` alone.

    Args:
        truth: COCO document. A category without annotations does not count; one that is never detected counts
            as 0.
        detections: COCO results of its images.
        seed: of the bootstrap.
        samples: resamples of the bootstrap.
        progress: shows how far it is.

    Returns:
        ``mask_map50``, ``mask_map75``, ``mask_map``, ``box_map50``, ``box_map75``, ``box_map`` and
        ``mask_map50_interval95`` (bootstrap over images) over all categories; the same under ``object_only``,
        which is ``None`` when the data has no such class; ``by_category``; ``by_size`` (relative to the image:
        small below 1/64 of its area, large above 1/16); ``by_count`` (objects per image). ``None`` where there
        is nothing to find.
    """
    names = {c["id"]: str(c["name"]) for c in truth["categories"]}
    groups = {"": list(names)} | {name: [c] for c, name in names.items()}
    masks = Evaluations.of(truth, detections, "segm", ranges=_SIZES, progress=progress)
    whole = {
        "mask": masks.curves(),
        "box": Evaluations.of(truth, detections, "bbox", progress=progress).curves(),
    }
    resampled = bootstrap_ap50(masks, samples=samples, seed=seed) if samples else np.zeros((0, len(names)))

    def overall(chosen: list[int]) -> dict[str, Any]:
        figures = {
            k: v for prefix, curves in whole.items() for k, v in _precisions(curves, prefix, chosen).items()
        }
        columns = resampled[:, [c in chosen for c in masks.categories]]
        return {**figures, "mask_map50_interval95": _interval(columns)}

    metrics = {
        **overall(groups[""]),
        "object_only": overall(groups[OBJECT]) if OBJECT in groups else None,
        "by_category": {name: _precisions(whole["mask"], "mask", [c]) for c, name in names.items()},
        "by_size": _by_size(truth, masks, groups),
        "by_count": _by_count(truth, masks, groups),
        "bootstrap": {"resamples": samples, "seed": seed, "unit": "image"},
    }
    at_half = whole["mask"].precision[np.isclose(masks.thresholds, 0.5)][0]
    curves = {names[c]: at_half[:, k] for k, c in enumerate(masks.categories) if at_half[0, k] > -1}
    return Evaluated(metrics, masks, curves)


def _precisions(curves: Curves, prefix: str, categories: Sequence[int]) -> dict[str, float | None]:
    return {
        f"{prefix}_map50": curves.average(0.5, categories),
        f"{prefix}_map75": curves.average(0.75, categories),
        f"{prefix}_map": curves.average(None, categories),
    }


def _interval(resampled: NDArray[np.float64]) -> list[float] | None:
    """95 % interval of the mean over categories; ``resampled`` is ``[samples, categories]`` with NaN for absent."""
    known = ~np.isnan(resampled)
    usable = known.any(axis=1)
    if not usable.any():
        return None
    means = np.nansum(resampled[usable], axis=1) / known[usable].sum(axis=1)
    return [float(v) for v in np.percentile(means, [2.5, 97.5])]


def _by_size(truth: dict[str, Any], masks: Evaluations, groups: dict[str, list[int]]) -> dict[str, Any]:
    pixels = {image["id"]: image["height"] * image["width"] for image in truth["images"]}
    figures = {}
    for size, (low, high) in _SIZES.items():
        if size in EVERY_SIZE:
            continue
        inside = [
            a
            for a in truth["annotations"]
            if not a["iscrowd"] and low <= a["area"] / pixels[a["image_id"]] * AREA_UNIT < high
        ]
        figures[size] = _group(masks.curves(size=size), inside, groups)
    return figures


def _by_count(
    truth: dict[str, Any], masks: Evaluations, groups: dict[str, list[int]]
) -> list[dict[str, Any]]:
    annotated = [a for a in truth["annotations"] if not a["iscrowd"]]
    counted = groups.get(OBJECT, groups[""])
    counts = dict.fromkeys(masks.images, 0)
    for annotation in annotated:
        counts[annotation["image_id"]] += annotation["category_id"] in counted
    figures = []
    for low, high in COUNT_BINS:
        places = [
            place
            for place, image in enumerate(masks.images)
            if low <= counts[image] and (high is None or counts[image] <= high)
        ]
        ids = {masks.images[place] for place in places}
        inside = [a for a in annotated if a["image_id"] in ids]
        name = f"{low}+" if high is None else f"{low}-{high}"
        figures.append(
            {"objects": name, "images": len(places), **_group(masks.curves(places), inside, groups)}
        )
    return figures


def _group(
    curves: Curves, annotations: Sequence[dict[str, Any]], groups: dict[str, list[int]]
) -> dict[str, Any]:
    """Annotations and mask average precision of a part of the data, over all categories and of objects alone."""

    def figures(chosen: list[int]) -> dict[str, Any]:
        count = sum(a["category_id"] in chosen for a in annotations)
        return {"annotations": count, **_precisions(curves, "mask", chosen)}

    alone = figures(groups[OBJECT]) if OBJECT in groups else None
    return {**figures(groups[""]), "object_only": alone}
