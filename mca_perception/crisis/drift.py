"""A diagnostic for drift: has the mixture of categories moved away from that of the training data?"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mca_perception.crisis.posts import CrisisReport

__all__ = ["DriftStatus", "DriftWatch"]

NOTICEABLE, STRONG = 0.1, 0.25
"""Usual reading of the population stability index."""
SMALLEST_SHARE = 1e-3


@dataclass(frozen=True)
class DriftStatus:
    """What the watch sees.

    Attributes:
        posts: in the window.
        stability_index: population stability index of the category shares; None before the window is half full.
        level: ``unknown``, ``stable``, ``noticeable`` or ``strong``.
        mean_confidence: mean probability of the chosen categories.
        shares: of the categories in the window.
    """

    posts: int
    stability_index: float | None
    level: str
    mean_confidence: float
    shares: Mapping[str, float]


class DriftWatch:
    """Compares the last ``window`` posts with a reference; thread-safe.

    Shares are means of probabilities, which are steadier than counts of chosen labels.
    """

    def __init__(self, reference: Mapping[str, float], window: int = 1000) -> None:
        """Watch from now on.

        Args:
            reference: posts, or share of posts, of every category in the training data.
            window: posts to look back.
        """
        self.names = tuple(reference)
        self._reference = _shares(np.array([reference[name] for name in self.names], np.float64))
        self._scores: deque[tuple[float, ...]] = deque(maxlen=window)
        self._window = window
        self._lock = threading.Lock()

    def add(self, report: CrisisReport) -> None:
        """Take a report into the window."""
        with self._lock:
            self._scores.append(tuple(report.humanitarian_scores[name] for name in self.names))

    def status(self) -> DriftStatus:
        """The window beside the reference."""
        with self._lock:
            scores = np.array(self._scores, np.float64).reshape(-1, len(self.names))
        if not len(scores):
            return DriftStatus(0, None, "unknown", 0.0, dict.fromkeys(self.names, 0.0))
        means = scores.mean(0)
        shares = _shares(means)
        index = float(((shares - self._reference) * np.log(shares / self._reference)).sum())
        enough = 2 * len(scores) >= self._window
        level = "stable" if index < NOTICEABLE else "noticeable" if index < STRONG else "strong"
        return DriftStatus(
            posts=len(scores),
            stability_index=index if enough else None,
            level=level if enough else "unknown",
            mean_confidence=float(scores.max(1).mean()),
            shares=dict(zip(self.names, means.tolist(), strict=True)),
        )


def _shares(values: np.ndarray) -> np.ndarray:
    bounded = np.maximum(values / values.sum(), SMALLEST_SHARE)
    return np.asarray(bounded / bounded.sum())
