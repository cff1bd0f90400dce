"""Temperatures and operating points of a defect head from its logits on held-out picks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.defects.operating_point import (
    choose_clearance,
    choose_threshold,
    expected_calibration_error,
    fit_temperature,
    negatives_needed,
)
from mca_perception.defects.scores import SCORES, scores_of, softmax
from mca_perception.errors import CalibrationError

__all__ = ["HeldOut", "calibrate"]

METHOD = (
    "order statistic of held-out nominal scores with an exact binomial bound (Neyman-Pearson umbrella); "
    "images: one per pick"
)
# Misses among the picks that pass without another view.
MISS_RATE = 0.05


@dataclass(frozen=True)
class HeldOut:
    """Logits and truth of one unit on held-out data.

    Attributes:
        logits: ``[N, 3]``.
        labels: ``[N]``.
        groups: ``[N]`` number of the pick that each row is of.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]

    def one_per_group(self, seed: int) -> HeldOut:
        """One random row of every pick: rows of one pick resemble each other, promises need independent ones."""
        order = np.random.default_rng(seed).permutation(len(self.labels))
        _, first = np.unique(self.groups[order], return_index=True)
        rows = np.sort(order[first])
        return HeldOut(self.logits[rows], self.labels[rows], self.groups[rows])


def calibrate(
    held_out: dict[str, HeldOut],
    rates: Sequence[float],
    confidence: float,
    *,
    calibrated_on: str,
    required: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Calibrate a head.

    Args:
        held_out: logits by unit (``image``, ``pick``).
        rates: false-positive rates to find thresholds for. Nominal images or picks are the negatives: an alarm on
            one stops the line for nothing.
        confidence: of each promise.
        calibrated_on: the data, in words.
        required: refuse a rate for which there are too few negatives; otherwise it is left out.
        seed: of the draw of one image per pick.

    Returns:
        Fields of the manifest's ``defects`` section: ``temperature``, ``operating_points``, ``clear_below``,
        ``calibrated_on``, ``calibration``.

    Raises:
        CalibrationError: too few negatives for a rate, or no data.
    """
    temperature: dict[str, float] = {}
    points: list[dict[str, Any]] = []
    clear: dict[str, float] = {}
    facts: dict[str, Any] = {"method": METHOD, "confidence": confidence, "miss_rate": MISS_RATE, "seed": seed}
    for unit, everything in held_out.items():
        sample = everything.one_per_group(seed)
        temperature[unit] = round(fit_temperature(sample.logits, sample.labels), 4)
        facts[unit] = _facts(sample, temperature[unit])
        scores = scores_of(sample.logits, temperature[unit])
        nominal = sample.labels == 0
        for rate in sorted(rates):
            if not required and nominal.sum() < negatives_needed(rate, confidence):
                continue
            for name in SCORES:
                point = choose_threshold(scores[name][nominal], rate, confidence, name=f"{unit}, {name}")
                points.append({"unit": unit, "score": name, **point.to_dict()})
        clearance = choose_clearance(scores["combined"][~nominal], MISS_RATE, confidence)
        if clearance is not None:
            clear[unit] = clearance
    return {
        "temperature": temperature,
        "operating_points": points,
        "clear_below": clear,
        "calibrated_on": calibrated_on,
        "calibration": facts,
    }


def _facts(sample: HeldOut, temperature: float) -> dict[str, Any]:
    if not len(sample.labels):
        raise CalibrationError("there are no held-out picks; hold out a larger share of the sessions")
    before = expected_calibration_error(softmax(sample.logits), sample.labels)
    after = expected_calibration_error(softmax(sample.logits, temperature), sample.labels)
    return {
        "held_out": len(sample.labels),
        "nominal": int((sample.labels == 0).sum()),
        "calibration_error": [round(before, 4), round(after, 4)],
    }
