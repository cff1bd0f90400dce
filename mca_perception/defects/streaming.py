"""Answers that build up view by view or frame by frame, and may come before the last one. NumPy only.

The largest score so far never falls, so a pick raises an alarm at some point exactly when its largest score exceeds the
threshold. A threshold chosen on the *largest* scores of held-out nominal picks therefore keeps its false-positive rate
however many frames are looked at and whenever one stops: one promise for the whole clip, not one per frame.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mca_perception.defects.scores import Answer

__all__ = ["RunningAnswer", "largest_scores"]


def largest_scores(clips: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Largest score ``[C]`` of each of some clips ``[T]``: what a threshold for running answers is chosen on."""
    return np.array([float(np.max(scores)) for scores in clips])


class RunningAnswer:
    """The answer of one pick so far.

    Args:
        threshold: an alarm is a score above it; from :func:`largest_scores` of nominal picks.
        clear_below: after ``patience`` scores of which none reaches this, the pick passes without the rest.
        patience: how many that takes.

    Attributes:
        frames: scores taken so far.
        peak: the largest of them.
        answer: ``another_view`` while it is open.
    """

    def __init__(self, threshold: float, *, clear_below: float | None = None, patience: int = 8) -> None:
        self.threshold = threshold
        self.clear_below = clear_below
        self.patience = patience
        self.frames = 0
        self.peak = -np.inf
        self.answer = Answer.ANOTHER_VIEW

    @property
    def is_final(self) -> bool:
        """Whether further scores would change nothing."""
        return self.answer is not Answer.ANOTHER_VIEW

    def update(self, score: float) -> Answer:
        """Take one more score; a final answer stays."""
        if self.is_final:
            return self.answer
        self.frames += 1
        self.peak = max(self.peak, float(score))
        if self.peak > self.threshold:
            self.answer = Answer.ALARM
        elif self.clear_below is not None and self.frames >= self.patience and self.peak < self.clear_below:
            self.answer = Answer.NOMINAL
        return self.answer

    def finish(self) -> Answer:
        """There are no more scores: what is no alarm passes."""
        if not self.is_final:
            self.answer = Answer.NOMINAL
        return self.answer
