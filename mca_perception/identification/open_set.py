"""The answer "not among these products": a similarity below which the best product is refused. NumPy only.

The threshold is an order statistic of the best similarities that unknown products reach, so its false-accept rate is
bounded whatever their distribution: with n unknown trials of which k pass, the rate exceeds p with a probability of at
most P(Binomial(n, p) <= k), the exact bound of Clopper and Pearson.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import DatasetError
from mca_perception.identification.evaluation import Ranked

__all__ = [
    "acceptance_threshold",
    "accepted",
    "binomial_upper_bound",
    "open_set_figures",
    "receiver_operating_curve",
    "trials_needed",
    "unknown_similarities",
]

Floats = NDArray[np.float64]


def unknown_similarities(ranked: Sequence[Ranked]) -> Floats:
    """Similarity of the best wrong product of every query: its best product, had the truth not been a candidate.

    Queries without another candidate are left out, as nothing could be accepted wrongly.
    """
    return np.array([r.others[0] for r in ranked if len(r.others)], dtype=np.float64)


def acceptance_threshold(unknown: Floats, false_accept: float, confidence: float) -> float:
    """Smallest threshold whose false-accept rate is below a limit; products are accepted strictly above it.

    Args:
        unknown: best similarities of unknown products, at least ``trials_needed`` of them.
        false_accept: limit of the rate, in (0, 1).
        confidence: probability with which the limit holds, in (0, 1).

    Raises:
        DatasetError: there are too few trials to say so.
    """
    allowed = _allowed_accepts(len(unknown), false_accept, confidence)
    if allowed is None:
        raise DatasetError(
            f"{len(unknown)} trials with unknown products cannot show a false-accept rate of {false_accept:g} with "
            f"confidence {confidence:g}; give at least {trials_needed(false_accept, confidence)} picks, a higher "
            "--false-accept or a lower --confidence"
        )
    return float(np.sort(unknown)[::-1][allowed])


def trials_needed(false_accept: float, confidence: float) -> int:
    """Fewest trials, all refused, that show a false-accept rate below a limit."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-false_accept))


def binomial_upper_bound(successes: int, trials: int, confidence: float = 0.95) -> float:
    """One-sided exact upper bound of a probability (Clopper and Pearson): 1 when there are no trials.

    Args:
        successes: how often it happened.
        trials: out of so many.
        confidence: probability with which the bound holds.
    """
    if successes >= trials:
        return 1.0
    low, high = successes / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(successes, trials, middle) > 1 - confidence else (low, middle)
    return high


def accepted(ranked: Sequence[Ranked], threshold: float) -> NDArray[np.bool_]:
    """Whether the best product of every query is accepted."""
    return np.array([r.best is not None and r.best[1] > threshold for r in ranked], dtype=bool)


def open_set_figures(ranked: Sequence[Ranked], threshold: float, confidence: float = 0.95) -> dict[str, Any]:
    """What a threshold does to picks of known and of unknown products.

    Args:
        ranked: queries that took no part in choosing it.
        threshold: from :func:`acceptance_threshold`.
        confidence: of the bounds.

    Returns:
        ``true_accept_rate``: share of the known queries (the truth is among the candidates) whose best product is
        right and accepted; ``false_accept_rate``: share of the unknown trials (each query without its truth) that
        accept some product, with its exact one-sided upper bound; ``refused_rate`` of the known queries; the numbers
        behind them.
    """
    known = [r for r in ranked if r.rank is not None]
    unknown = unknown_similarities(ranked)
    accepts, false = accepted(known, threshold), int((unknown > threshold).sum())
    right = np.array([r.rank == 1 for r in known], dtype=bool)
    return {
        "threshold": threshold,
        "known": len(known),
        "unknown": len(unknown),
        "true_accept_rate": _share(accepts & right),
        "accepted_as_another_rate": _share(accepts & ~right),
        "refused_rate": _share(~accepts),
        "false_accepts": false,
        "false_accept_rate": false / len(unknown) if len(unknown) else None,
        "false_accept_rate_upper_bound": binomial_upper_bound(false, len(unknown), confidence),
        "bound_confidence": confidence,
        "auroc": _auroc(np.array([r.best[1] for r in known if r.best]), unknown),
    }


def receiver_operating_curve(ranked: Sequence[Ranked]) -> tuple[Floats, Floats]:
    """False-accept and true-accept rate at every similarity that an unknown product reaches, rising."""
    known = [r for r in ranked if r.rank is not None]
    unknown = np.sort(unknown_similarities(ranked))[::-1]
    right = np.sort([r.best[1] for r in known if r.rank == 1 and r.best])
    passing = len(right) - np.searchsorted(right, unknown, side="right")
    return np.arange(len(unknown)) / max(1, len(unknown)), passing / max(1, len(known))


def _allowed_accepts(trials: int, rate: float, confidence: float) -> int | None:
    """Most trials that may be accepted; None if even none are too many."""
    if trials == 0 or _at_most(0, trials, rate) > 1 - confidence:
        return None
    low, high = 0, trials - 1  # the answer is low, or lies between
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _at_most(middle, trials, rate) <= 1 - confidence else (low, middle - 1)
    return low


def _at_most(successes: int, trials: int, probability: float) -> float:
    """P(Binomial(trials, probability) <= successes)."""
    if probability in (0.0, 1.0):
        return float(probability == 0 or successes >= trials)
    numbers = range(successes + 1)
    log_p, log_q = math.log(probability), math.log1p(-probability)
    whole = math.lgamma(trials + 1)
    terms = [
        whole - math.lgamma(i + 1) - math.lgamma(trials - i + 1) + i * log_p + (trials - i) * log_q
        for i in numbers
    ]
    highest = max(terms)
    return min(1.0, math.exp(highest) * math.fsum(math.exp(term - highest) for term in terms))


def _share(flags: NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _auroc(known: Floats, unknown: Floats) -> float | None:
    """Probability that a known product's best similarity exceeds an unknown one's; ties count half."""
    if not len(known) or not len(unknown):
        return None
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, side="left") + np.searchsorted(ordered, known, side="right")
    return float(below.mean() / (2 * len(unknown)))
