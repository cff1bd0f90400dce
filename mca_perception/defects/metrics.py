"""Figures of a binary score: ROC and precision-recall curves, recall at a false-positive rate, argmax figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curves", "argmax_figures", "curves", "recall_at_fpr"]


@dataclass(frozen=True)
class Curves:
    """A score's behaviour at every threshold, from the strictest to the loosest.

    Attributes:
        thresholds: ``[K]`` distinct scores, descending; an alarm is a score of at least the threshold.
        false_positives: ``[K]`` negatives with an alarm.
        true_positives: ``[K]`` positives with an alarm.
        negatives: number of negatives.
        positives: number of positives.
    """

    thresholds: NDArray[np.float64]
    false_positives: NDArray[np.int64]
    true_positives: NDArray[np.int64]
    negatives: int
    positives: int

    @property
    def fpr(self) -> NDArray[np.float64]:
        """False-positive rate at every threshold, ``[K]``."""
        return np.asarray(self.false_positives / max(self.negatives, 1))

    @property
    def recall(self) -> NDArray[np.float64]:
        """Recall at every threshold, ``[K]``."""
        return np.asarray(self.true_positives / max(self.positives, 1))

    @property
    def precision(self) -> NDArray[np.float64]:
        """Precision at every threshold, ``[K]``."""
        return np.asarray(self.true_positives / (self.true_positives + self.false_positives))

    @property
    def average_precision(self) -> float:
        """Sum over thresholds of precision times the gain in recall."""
        return float(np.sum(self.precision * np.diff(self.recall, prepend=0.0)))

    @property
    def roc_auc(self) -> float:
        """Area under the ROC curve, by trapezoids."""
        fpr, recall = np.r_[0.0, self.fpr], np.r_[0.0, self.recall]
        return float(np.sum(np.diff(fpr) * (recall[1:] + recall[:-1]) / 2))


def curves(scores: NDArray[np.floating[Any]], positive: NDArray[np.bool_]) -> Curves:
    """Curves of scores ``[N]`` against the truth ``[N]``; equal scores move together."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = np.asarray(scores, np.float64)[order], positive[order]
    last = (
        np.r_[np.flatnonzero(np.diff(ordered)), len(ordered) - 1] if len(ordered) else np.zeros(0, np.int64)
    )
    true = np.cumsum(hits, dtype=np.int64)[last]
    return Curves(ordered[last], 1 + last - true, true, int((~positive).sum()), int(positive.sum()))


def recall_at_fpr(found: Curves, fpr: float) -> tuple[float | None, float | None]:
    """Best recall at any threshold whose measured false-positive rate does not exceed ``fpr``.

    Returns:
        The recall and its threshold (infinite when there is no alarm at all); None where a class is absent.
    """
    if not found.positives or not found.negatives:
        return None, None
    inside = np.flatnonzero(found.fpr <= fpr)
    if not len(inside):
        return 0.0, float("inf")
    return float(found.recall[inside[-1]]), float(found.thresholds[inside[-1]])


def argmax_figures(
    predicted: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]], names: tuple[str, ...]
) -> dict[str, dict[str, float | int | None]]:
    """One-against-the-rest precision, recall and false-positive rate of decisions, per class and combined.

    As the published baselines count them (specification of ARMBench, section 2.3); ``combined`` is any class but the
    first against the first.

    Args:
        predicted: ``[N]`` class of the largest probability.
        labels: ``[N]`` truth.
        names: of the classes, the nominal one first.
    """
    figures = {}
    for number, name in enumerate((*names[1:], "combined"), start=1):
        combined = name == "combined"
        found = predicted > 0 if combined else predicted == number
        truth = labels > 0 if combined else labels == number
        hits = int((found & truth).sum())
        figures[name] = {
            "precision": _ratio(hits, int(found.sum())),
            "recall": _ratio(hits, int(truth.sum())),
            "fpr": _ratio(int((found & ~truth).sum()), int((~truth).sum())),
            "positives": int(truth.sum()),
        }
    return figures


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
