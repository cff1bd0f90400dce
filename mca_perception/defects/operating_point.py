"""Thresholds that keep a promised false-positive rate, exact intervals, and calibrated probabilities.

An alarm is raised when a score exceeds the threshold. The threshold is an order statistic of the scores of held-out
negatives, chosen such that the false-positive rate on new negatives from the same source stays at or below the
requested one with the stated confidence, whatever the distribution of the scores (Neyman-Pearson umbrella algorithm,
Tong, Feng and Li 2018, proposition 1). The condition is the exact binomial one: the rate is kept exactly when the
one-sided Clopper-Pearson bound of the held-out false alarms does not exceed it. The negatives have to be exchangeable
with those to come: take one score per pick, since images of one pick resemble each other.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from mca_perception.errors import CalibrationError

__all__ = [
    "OperatingPoint",
    "allowed_false_alarms",
    "choose_clearance",
    "choose_threshold",
    "clopper_pearson",
    "expected_calibration_error",
    "fit_temperature",
    "negatives_needed",
]

_LOG_TEMPERATURES = (math.log(0.05), math.log(20.0))


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold with its promise.

    Attributes:
        threshold: an alarm is a score above it.
        fpr: promised false-positive rate.
        confidence: probability, over the draw of the held-out negatives, that the promise holds.
        negatives: held-out negatives it was chosen on.
        false_alarms: those of them that score above the threshold.
        fpr_bound: one-sided exact upper bound of the rate at that confidence; at most ``fpr``.
    """

    threshold: float
    fpr: float
    confidence: float
    negatives: int
    false_alarms: int
    fpr_bound: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)


def negatives_needed(fpr: float, confidence: float) -> int:
    """Fewest held-out negatives with which any threshold can keep ``fpr`` at ``confidence``.

    With none above the threshold, ``(1 - fpr) ** n`` must not exceed ``1 - confidence``: 299 for 1 % at 95 %.

    Raises:
        CalibrationError: a value is not between 0 and 1.
    """
    _check_rates(fpr, confidence)
    estimate = math.ceil(math.log1p(-confidence) / math.log1p(-fpr))
    return next(n for n in range(max(estimate - 2, 1), estimate + 3) if (1 - fpr) ** n <= 1 - confidence)


def allowed_false_alarms(negatives: int, fpr: float, confidence: float) -> int:
    """Most held-out negatives that may score above the threshold; -1 when even none is too many.

    The largest ``m`` with ``P(Binomial(negatives, fpr) <= m) <= 1 - confidence``.
    """
    _check_rates(fpr, confidence)
    # ppf gives the smallest m whose probability reaches the level; rounding may put it one off on either side.
    start = int(stats.binom.ppf(1 - confidence, negatives, fpr)) + 1
    return next(
        m for m in range(start, -2, -1) if m < 0 or stats.binom.cdf(m, negatives, fpr) <= 1 - confidence
    )


def choose_threshold(
    negatives: ArrayLike, fpr: float, confidence: float, *, name: str = ""
) -> OperatingPoint:
    """Lowest threshold that keeps a false-positive rate.

    Args:
        negatives: ``[N]`` scores of held-out negatives, one per pick.
        fpr: false-positive rate to promise.
        confidence: probability with which the promise has to hold.
        name: what the scores are of, for messages.

    Raises:
        CalibrationError: too few negatives (the message says how many are needed), a score is not finite, or a rate
            is not between 0 and 1.
    """
    scores = _checked(negatives, name)
    needed = negatives_needed(fpr, confidence)
    if len(scores) < needed:
        raise CalibrationError(
            f"{name or 'calibration'}: {len(scores)} held-out negatives are too few to promise a false-positive rate "
            f"of {fpr:g} with {confidence:g} confidence; {needed} are needed: add nominal picks, hold out more of "
            "them, or ask for a higher rate"
        )
    allowed = allowed_false_alarms(len(scores), fpr, confidence)
    threshold = float(np.partition(scores, len(scores) - 1 - allowed)[len(scores) - 1 - allowed])
    alarms = int((scores > threshold).sum())
    bound = clopper_pearson(alarms, len(scores), confidence, side="upper")[1]
    return OperatingPoint(threshold, fpr, confidence, len(scores), alarms, bound)


def choose_clearance(positives: ArrayLike, miss_rate: float, confidence: float) -> float | None:
    """Highest score below which a pick may be called nominal while misses stay at or below ``miss_rate``.

    Scores between it and the alarm threshold are undecided: another view is asked for. The rule of
    :func:`choose_threshold` on the positives' side.

    Returns:
        The score; None when there are too few positives to promise anything.
    """
    scores = _checked(positives, "defective picks")
    allowed = allowed_false_alarms(len(scores), miss_rate, confidence)
    return float(np.partition(scores, allowed)[allowed]) if allowed >= 0 else None


def clopper_pearson(
    successes: int, trials: int, confidence: float = 0.95, *, side: str = "both"
) -> tuple[float, float]:
    """Exact interval of a binomial probability (Clopper and Pearson 1934); (0, 1) without trials.

    Args:
        successes: out of ``trials``.
        trials: number of independent trials.
        confidence: coverage is at least this.
        side: ``both``, or ``upper`` for a one-sided bound (the lower end is then 0).
    """
    if trials == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2 if side == "both" else 1 - confidence
    low = 0.0
    if side == "both" and successes > 0:
        low = float(stats.beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """Temperature with the best log-likelihood on held-out data (Guo et al. 2017), between 0.05 and 20.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]``.

    Raises:
        CalibrationError: there is no data.
    """
    if len(labels) == 0:
        raise CalibrationError(
            "there are no held-out picks to fit the temperature on; hold out a larger share"
        )
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = np.asarray(logits, np.float64) / math.exp(log_temperature)
        top = scaled.max(axis=1)
        normaliser = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((normaliser - scaled[rows, labels]).mean())

    found = optimize.minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(math.exp(found.x))


def expected_calibration_error(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], *, bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of the confidence (Guo et al. 2017, eq. 3)."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(correct[index == b].mean() - confidence[index == b].mean()) * (index == b).mean()
        for b in np.unique(index)
    ]
    return float(sum(gaps))


def _checked(scores: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(scores, np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise CalibrationError(f"{name or 'calibration'}: scores must be one finite number per pick")
    return array


def _check_rates(fpr: float, confidence: float) -> None:
    for name, value in (("false-positive rate", fpr), ("confidence", confidence)):
        if not 0 < value < 1:
            raise CalibrationError(f"{name} {value:g} must lie between 0 and 1, both excluded")
