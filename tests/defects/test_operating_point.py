from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mca_perception.defects.operating_point import (
    allowed_false_alarms,
    choose_clearance,
    choose_threshold,
    clopper_pearson,
    expected_calibration_error,
    fit_temperature,
    negatives_needed,
)
from mca_perception.defects.scores import softmax
from mca_perception.errors import CalibrationError


@pytest.mark.parametrize(
    ("fpr", "confidence", "needed"),
    [(0.01, 0.95, 299), (0.05, 0.95, 59), (0.01, 0.99, 459), (0.5, 0.5, 1), (0.1, 0.9, 22)],
)
def test_negatives_needed(fpr: float, confidence: float, needed: int) -> None:
    assert negatives_needed(fpr, confidence) == needed
    assert choose_threshold(np.arange(needed), fpr, confidence).false_alarms == 0
    with pytest.raises(CalibrationError, match=f"{needed} are needed") as refused:
        choose_threshold(np.arange(needed - 1), fpr, confidence, name="multi_pick")
    assert f"multi_pick: {needed - 1} held-out negatives" in str(refused.value)


@pytest.mark.parametrize("negatives", [299, 472, 473, 1000, 4321])
@pytest.mark.parametrize("fpr", [0.01, 0.05])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_rule_is_the_exact_binomial_bound(negatives: int, fpr: float, confidence: float) -> None:
    allowed = allowed_false_alarms(negatives, fpr, confidence)
    # The defining probability, and the one-sided Clopper-Pearson bound by scipy's own test, say the same.
    assert (
        stats.binom.cdf(allowed, negatives, fpr)
        <= 1 - confidence
        < stats.binom.cdf(allowed + 1, negatives, fpr)
    )
    for alarms, inside in ((allowed, True), (allowed + 1, False)):
        test = stats.binomtest(alarms, negatives, alternative="less")
        bound = test.proportion_ci(confidence, method="exact").high
        assert (bound <= fpr) is inside
        assert clopper_pearson(alarms, negatives, confidence, side="upper")[1] == pytest.approx(
            bound, abs=1e-12
        )


def test_promise_is_broken_no_more_often_than_stated() -> None:
    """2,000 calibrations: the true rate at each threshold is known, since the scores are uniform."""
    rng = np.random.default_rng(3)
    fpr, confidence, runs = 0.01, 0.95, 2000
    rates = np.array([1 - choose_threshold(rng.random(700), fpr, confidence).threshold for _ in range(runs)])
    broken = int((rates > fpr).sum())
    # Exact probability of breaking it, for these 700 negatives; the count must agree with it and with the promise.
    exact = stats.binom.cdf(allowed_false_alarms(700, fpr, confidence), 700, fpr)
    assert exact <= 1 - confidence
    assert stats.binomtest(broken, runs, exact).pvalue > 1e-3
    assert broken <= stats.binom.ppf(0.999, runs, 1 - confidence)
    assert broken > 0  # as tight as the discrete rule can be, not merely safe


def test_ties_never_break_the_promise() -> None:
    rng = np.random.default_rng(4)
    levels, fpr = 20, 0.1
    broken = 0
    for _ in range(500):
        point = choose_threshold(rng.integers(levels, size=100), fpr, 0.9)
        broken += (levels - 1 - point.threshold) / levels > fpr
        assert point.false_alarms <= allowed_false_alarms(100, fpr, 0.9)
        assert point.fpr_bound <= fpr
    assert broken <= stats.binom.ppf(0.999, 500, 0.1)


@pytest.mark.parametrize(
    ("scores", "fpr", "confidence", "message"),
    [
        ([0.1] * 400, 0.0, 0.95, "false-positive rate 0"),
        ([0.1] * 400, 0.01, 1.0, "confidence 1"),
        ([0.1] * 399 + [float("nan")], 0.01, 0.95, "finite"),
        ([[0.1] * 400], 0.01, 0.95, "one finite number per pick"),
        ([], 0.01, 0.95, "0 held-out negatives"),
    ],
)
def test_refuses_bad_input(scores: list, fpr: float, confidence: float, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        choose_threshold(scores, fpr, confidence)


def test_clearance_keeps_the_miss_rate() -> None:
    rng = np.random.default_rng(5)
    clear = [choose_clearance(rng.random(200), 0.05, 0.9) for _ in range(500)]
    assert sum(score > 0.05 for score in clear) <= stats.binom.ppf(0.999, 500, 0.1)
    assert choose_clearance(rng.random(30), 0.05, 0.9) is None


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (1, 4000)])
def test_interval_equals_scipy(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert clopper_pearson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 1.5, (6000, 3))
    labels = np.array([rng.choice(3, p=row) for row in softmax(logits)])
    assert fit_temperature(logits * 3.0, labels) == pytest.approx(3.0, rel=0.08)
    before = expected_calibration_error(softmax(logits * 3.0), labels)
    after = expected_calibration_error(softmax(logits * 3.0, 3.0), labels)
    assert after < 0.03 < before
    with pytest.raises(CalibrationError, match="no held-out"):
        fit_temperature(logits[:0], labels[:0])
