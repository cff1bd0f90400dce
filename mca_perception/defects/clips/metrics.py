"""Figures of clips: accuracy per bit, exact match, and how many frames a decision takes. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.armbench_defect_videos import BITS
from mca_perception.defects.metrics import curves
from mca_perception.defects.scores import Answer
from mca_perception.defects.streaming import RunningAnswer, largest_scores

__all__ = ["ClipScores", "bit_figures", "bit_thresholds", "nominal_peaks", "stream_figures"]


@dataclass(frozen=True)
class ClipScores:
    """What a model says about clips.

    Attributes:
        frames: probabilities ``[T, 2]`` of the bits after every frame of each clip; T may differ.
        bits: bool ``[C, 2]``, the truth.
        first_visible: frame in which the defect shows first, where it is known.
    """

    frames: Sequence[NDArray[np.float64]]
    bits: NDArray[np.bool_]
    first_visible: Sequence[int | None]

    @property
    def clips(self) -> NDArray[np.float64]:
        """Probabilities ``[C, 2]`` of whole clips: the largest of their frames."""
        return np.array([frames.max(axis=0) for frames in self.frames]).reshape(-1, len(BITS))

    @property
    def defective(self) -> NDArray[np.bool_]:
        """Whether any bit of a clip is set, ``[C]``."""
        return np.asarray(self.bits.any(axis=1), np.bool_)

    @property
    def any_defect(self) -> list[NDArray[np.float64]]:
        """Larger probability of the two bits after every frame, by clip."""
        return [frames.max(axis=1) for frames in self.frames]


def bit_thresholds(scores: ClipScores) -> tuple[float, ...]:
    """Threshold of each bit with which it is right most often, for other clips than these; the largest of the best."""
    chosen = []
    for found, truth in zip(scores.clips.T, scores.bits.T, strict=True):
        candidates = np.unique(np.append(found, 0.5))
        right = [(found > candidate) == truth for candidate in candidates]
        accuracy = np.mean(right, axis=1)
        chosen.append(float(candidates[np.flatnonzero(accuracy == accuracy.max())[-1]]))
    return tuple(chosen)


def bit_figures(
    scores: ClipScores, thresholds: Sequence[float] = (0.5,) * len(BITS)
) -> dict[str, float | None]:
    """Accuracy and ROC AUC of each bit, their mean accuracy, and exact match (specification of ARMBench, 3.4).

    ``any_defect_auc`` is of the larger probability of the two, which running answers judge by; ``nominal_share`` the
    exact match of an answer that always says nominal.

    Args:
        scores: of at least one clip.
        thresholds: a bit is set above its own.
    """
    found, truth = scores.clips > np.asarray(thresholds), scores.bits
    figures: dict[str, float | None] = {}
    for number, name in enumerate(BITS):
        figures[f"{name}_accuracy"] = float((found[:, number] == truth[:, number]).mean())
        figures[f"{name}_auc"] = _roc_auc(scores.clips[:, number], truth[:, number])
    figures["any_defect_auc"] = _roc_auc(scores.clips.max(axis=1), scores.defective)
    figures["accuracy"] = float((found == truth).mean())
    figures["nominal_share"] = float((~scores.defective).mean())
    figures["exact_match"] = float((found == truth).all(axis=1).mean())
    return figures


def stream_figures(
    scores: ClipScores, threshold: float, *, clear_below: float | None = None, patience: int = 8
) -> dict[str, Any]:
    """Alarms of running answers, and how many frames they took.

    Args:
        scores: of the clips.
        threshold: of an alarm, on the larger probability of the two bits.
        clear_below: see :class:`~mca_perception.defects.streaming.RunningAnswer`.
        patience: likewise.

    Returns:
        Recall and false-positive rate of the clips; the median number of frames from the first to the alarm, and from
        the first that shows the defect (where that is known) to the alarm; and the share of frames that nominal clips
        needed until they passed.
    """
    defective = scores.defective
    alarms, frames, after_visible, looked_at = [], [], [], []
    for clip, (values, first) in enumerate(zip(scores.any_defect, scores.first_visible, strict=True)):
        running = RunningAnswer(threshold, clear_below=clear_below, patience=patience)
        for value in values:
            if running.is_final:
                break
            running.update(float(value))
        alarms.append(running.finish() is Answer.ALARM)
        if alarms[-1] and defective[clip]:
            frames.append(running.frames)
            if first is not None:
                after_visible.append(running.frames - 1 - first)
        if not defective[clip]:
            looked_at.append(running.frames / len(values))
    raised = np.array(alarms, np.bool_)
    return {
        "threshold": threshold,
        "recall": _share(raised[defective]),
        "false_positive_rate": _share(raised[~defective]),
        "defective": int(defective.sum()),
        "nominal": int((~defective).sum()),
        "frames_to_alarm_median": _median(frames),
        "frames_after_visible_median": _median(after_visible),
        "frames_looked_at_of_nominal": float(np.mean(looked_at)) if looked_at else None,
    }


def nominal_peaks(scores: ClipScores) -> NDArray[np.float64]:
    """Largest score of each nominal clip: what a threshold for running answers is chosen on."""
    pairs = zip(scores.any_defect, scores.defective, strict=True)
    return largest_scores([values for values, defective in pairs if not defective])


def _roc_auc(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float | None:
    """None unless there are clips of both kinds."""
    return float(curves(scores, truth).roc_auc) if 0 < truth.sum() < len(truth) else None


def _share(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None


def _median(values: Sequence[int]) -> float | None:
    return float(np.median(values)) if values else None
