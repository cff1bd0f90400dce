"""From logits to scores, alarms and answers. NumPy only."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.armbench_defects import LABELS

__all__ = ["SCORES", "Answer", "answer", "scores_of", "softmax"]

SCORES = (*LABELS[1:], "combined")
"""What a threshold can be on: the probability of one defect, or of any."""


class Answer(str, Enum):
    """What to do with a pick."""

    NOMINAL = "nominal"
    ALARM = "alarm"
    ANOTHER_VIEW = "another_view"


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities ``[..., C]`` of logits divided by a temperature."""
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def scores_of(logits: NDArray[np.floating[Any]], temperature: float) -> dict[str, NDArray[np.float64]]:
    """Calibrated probabilities of the defects, and of any of them, ``[N]`` each, from logits ``[N, 3]``."""
    probabilities = softmax(logits, temperature)
    # Adding the defects keeps small values exact, which 1 - p(nominal) would not.
    return {
        **{name: probabilities[:, number] for number, name in enumerate(LABELS) if number},
        "combined": probabilities[:, 1:].sum(axis=1),
    }


def answer(
    score: float, threshold: float, clear_below: float | None = None, *, last_view: bool = False
) -> Answer:
    """Decide on a score.

    Args:
        score: of the pick so far.
        threshold: an alarm is a score above it.
        clear_below: below it the pick passes as nominal; between the two another view is asked for.
        last_view: there is no other view: what is no alarm passes.
    """
    if score > threshold:
        return Answer.ALARM
    if last_view or clear_below is None or score < clear_below:
        return Answer.NOMINAL
    return Answer.ANOTHER_VIEW
