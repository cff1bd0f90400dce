"""How many objects are found, missed and invented at one score threshold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mca_perception.segmentation.average_precision import Evaluations, Progress, evaluate_in_parts
from mca_perception.segmentation.detections import Detection

__all__ = ["ImageScore", "best_threshold", "operating_point"]


@dataclass(frozen=True)
class ImageScore:
    """Matches of one image at the operating point; ``overlap`` is the sum of the IoUs of the true positives."""

    image_id: int
    true_positives: int
    false_positives: int
    false_negatives: int
    overlap: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 for an empty image left empty."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else 1.0

    @property
    def quality(self) -> float:
        """Panoptic quality: F1 times the mean IoU of what was found; 1 for an empty image left empty."""
        total = self.true_positives + (self.false_positives + self.false_negatives) / 2
        return self.overlap / total if total else 1.0


def operating_point(
    truth: dict[str, Any],
    detections: Iterable[Detection],
    categories: Sequence[int],
    *,
    iou: float = 0.5,
    progress: Progress = lambda items, _: items,
) -> tuple[dict[str, Any], list[ImageScore]]:
    """Count matches of detections with annotations, as pycocotools matches them.

    Args:
        truth: COCO document.
        detections: COCO results, those above the score threshold.
        categories: ids of the categories that count.
        iou: smallest mask IoU of a match.
        progress: shows how far it is.

    Returns:
        ``precision``, ``recall``, ``f1`` and the ``mean_iou`` of the matches, ``None`` where undefined; and the
        counts of every image.
    """
    chosen = {**truth, "categories": [c for c in truth["categories"] if c["id"] in categories]}
    counts = {image["id"]: [0, 0, 0, 0.0] for image in truth["images"]}
    for part in evaluate_in_parts(chosen, detections, "segm", iou=iou, progress=progress):
        for entry in part.evalImgs:
            if entry is None:
                continue
            counted, matched = ~entry["dtIgnore"][0].astype(bool), entry["dtMatches"][0] > 0
            hits = counted & matched
            # Columns of the IoU table follow the ids, which ascend.
            columns = np.searchsorted(np.sort(entry["gtIds"]), entry["dtMatches"][0][hits])
            table = np.asarray(part.ious[entry["image_id"], entry["category_id"]])
            overlap = table[np.flatnonzero(hits), columns].sum() if hits.any() else 0.0
            found = int(hits.sum())
            missed = int(np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)) - found
            added = (found, int((counted & ~matched).sum()), missed, float(overlap))
            image = counts[entry["image_id"]]
            image[:] = [old + new for old, new in zip(image, added, strict=True)]
    scores = [ImageScore(number, int(t), int(p), int(n), o) for number, (t, p, n, o) in counts.items()]
    return _figures(scores), scores


def best_threshold(
    evaluations: Evaluations, categories: Sequence[int], *, iou: float = 0.5
) -> dict[str, Any]:
    """Find the score threshold with the best F1 over all images.

    Returns:
        ``best_f1`` and ``best_f1_threshold``, ``None`` when nothing was detected.
    """
    scores, hits, wanted = evaluations.ranked(iou, categories)
    if not len(scores):
        return {"best_f1": None, "best_f1_threshold": None}
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * np.cumsum(hits[order]) / (np.arange(1, len(order) + 1) + wanted)
    best = int(f1.argmax())
    return {"best_f1": float(f1[best]), "best_f1_threshold": float(scores[order][best])}


def _figures(scores: Sequence[ImageScore]) -> dict[str, Any]:
    hits = sum(s.true_positives for s in scores)
    found = hits + sum(s.false_positives for s in scores)
    wanted = hits + sum(s.false_negatives for s in scores)
    return {
        "precision": hits / found if found else None,
        "recall": hits / wanted if wanted else None,
        "f1": 2 * hits / (found + wanted) if found + wanted else None,
        "mean_iou": sum(s.overlap for s in scores) / hits if hits else None,
    }
