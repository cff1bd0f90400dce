"""How sure an answer is: a probability for the product ranked first, calibrated by one temperature. NumPy only.

The probability is the softmax, over the best 20 products, of similarity / temperature. It answers the question "is the
first product right, given that the right one is among those searched"; whether it is among them at all is for
:mod:`.open_set` to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import DatasetError

__all__ = ["CANDIDATES", "confidences", "fit_temperature", "reliability"]

CANDIDATES = 20
"""Products that enter the softmax: what comes after them weighs nothing, and a search need not return it."""

BINS = 10
_TEMPERATURES = (1e-3, 10.0)
_GRID = 40
_REFINEMENTS = 3
# A probability of exactly 1, of a manifest with one product, has to have a finite logarithm.
_FLOOR = 1e-6

Floats = NDArray[np.float64]


def confidences(similarities: Sequence[NDArray[np.float32]], temperature: float) -> Floats:
    """Probability that the best product is the right one.

    Args:
        similarities: for each query those of its products, descending; only the first 20 are used.
        temperature: above 0.

    Returns:
        float64 ``[N]``; NaN for a query without products.
    """
    found = np.full(len(similarities), np.nan)
    for i, row in enumerate(similarities):
        if len(row):
            best = row[:CANDIDATES].astype(np.float64)
            found[i] = 1 / np.exp((best - best[0]) / temperature).sum()
    return found


def fit_temperature(similarities: Sequence[NDArray[np.float32]], correct: NDArray[np.bool_]) -> float:
    """The temperature with the least negative log-likelihood of "the best product is right" over queries.

    Args:
        similarities: as for :func:`confidences`, at least one product each.
        correct: ``[N]``, whether the best product is the right one.

    Raises:
        DatasetError: there is no query, or all or none are right, which every small or large temperature fits.
    """
    if correct.all() or not correct.any():
        raise DatasetError(
            f"{int(correct.sum())} of {len(correct)} picks are identified correctly: a temperature cannot be fitted to "
            "that; calibrate on more or harder picks"
        )
    low, high = (float(np.log(value)) for value in _TEMPERATURES)
    for _ in range(_REFINEMENTS):
        grid = np.linspace(low, high, _GRID)
        losses = [_negative_log_likelihood(similarities, correct, float(np.exp(value))) for value in grid]
        best, step = grid[int(np.argmin(losses))], (high - low) / (_GRID - 1)
        low, high = best - step, best + step
    return float(np.exp(best))


def reliability(confidence: Floats, correct: NDArray[np.bool_]) -> dict[str, Any]:
    """How well stated probabilities agree with how often the answer is right.

    Args:
        confidence: ``[N]`` in [0, 1].
        correct: ``[N]``.

    Returns:
        ``queries``, ``expected_calibration_error`` over ten equal bins, ``brier_score``, and ``reliability``: mean
        confidence, accuracy and count ``n`` of every bin that is not empty.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    entries = [
        {
            "confidence": float(confidence[bins == i].mean()),
            "accuracy": float(correct[bins == i].mean()),
            "n": int((bins == i).sum()),
        }
        for i in np.unique(bins)
    ]
    count = len(confidence)
    error = sum(entry["n"] * abs(entry["confidence"] - entry["accuracy"]) for entry in entries)
    return {
        "queries": count,
        "expected_calibration_error": float(error / count) if count else None,
        "brier_score": float(np.square(confidence - correct).mean()) if count else None,
        "reliability": entries,
    }


def _negative_log_likelihood(
    similarities: Sequence[NDArray[np.float32]], correct: NDArray[np.bool_], temperature: float
) -> float:
    p = confidences(similarities, temperature).clip(_FLOOR, 1 - _FLOOR)
    return float(-np.log(np.where(correct, p, 1 - p)).mean())
