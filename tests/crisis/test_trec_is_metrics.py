"""The official metrics of TREC-IS against figures worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from mca_perception.crisis.trec_is_metrics import Answered, alert_worth, priority_level, trec_is_metrics
from mca_perception.datasets.trec_is import INFORMATION_TYPES, LabelledTweet
from mca_perception.datasets.trec_is_runs import Run
from mca_perception.errors import DatasetError
from tests.support.crisis import run_entry

RESCUE = INFORMATION_TYPES.index("Request-SearchAndRescue")
THREATS = INFORMATION_TYPES.index("Report-EmergingThreats")
NEWS = INFORMATION_TYPES.index("Report-News")
WEATHER = INFORMATION_TYPES.index("Report-Weather")


def gold(number: int, priority: str | None, types: Sequence[int], topic: str = "E-1") -> LabelledTweet:
    return LabelledTweet(topic, str(900_000_000_000_000_000 + number), frozenset(types), priority)


def answered(
    level: str, priority: float, gold_types: Sequence[int] = (), types: Sequence[int] = ()
) -> Answered:
    return Answered(gold(0, level, gold_types), frozenset(types), priority)


@pytest.mark.parametrize(
    ("false_alerts", "worth"), [(0, 0.0), (1, -math.log10(1.5)), (2, -math.log10(2)), (20, -1.0)]
)
def test_worth_falls_with_consecutive_false_alerts(false_alerts: int, worth: float) -> None:
    assert alert_worth([answered("Low", 0.9)] * (false_alerts + 1))[-1] == pytest.approx(worth)


def test_a_true_alert_forgives_false_ones() -> None:
    worth = alert_worth([answered("Low", 1.0)] * 2 + [answered("High", 0.9)] + [answered("Medium", 0.8)])
    assert worth == pytest.approx([0, -math.log10(1.5), 0.3, 0])


@pytest.mark.parametrize(
    ("tweet", "worth"),
    [
        (answered("Critical", 0.69), -1.0),
        (answered("Critical", 0.7), 0.3),
        (answered("High", 0.9, (RESCUE, NEWS), (RESCUE, NEWS)), 1.0),
        (answered("High", 0.9, (RESCUE, NEWS), (NEWS,)), 0.3 + 0.7 * 0.25),
        (answered("High", 0.9, (RESCUE, NEWS), (RESCUE, THREATS)), 0.3 + 0.7 * 0.75 * 0.5),
        (answered("Low", 0.1, (NEWS, WEATHER), (NEWS,)), 0.5),
        (answered("Low", 0.1, (RESCUE,), (RESCUE,)), 0.75),
        (answered("Low", 0.1), 0.0),
    ],
)
def test_worth_of_one_tweet(tweet: Answered, worth: float) -> None:
    assert alert_worth([tweet]) == pytest.approx([worth])


@pytest.mark.parametrize(
    ("score", "level"), [(0, 0), (0.25, 0), (0.26, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (1, 3)]
)
def test_levels_are_closed_above(score: float, level: int) -> None:
    assert priority_level(score) == level


def test_types_by_hand() -> None:
    labels = [gold(1, "Low", (NEWS,)), gold(2, "High", (NEWS, RESCUE)), gold(3, "Low", ())]
    run = Run("r", (run_entry("E-1", 1, 0.0, (NEWS,)), run_entry("E-1", 2, 1.0, (RESCUE,))))
    metrics = trec_is_metrics(labels, run)
    # News: one of two found, no false one, F1 2/3. SearchAndRescue: F1 1. All other types: 0.
    assert metrics["cf1_a"] == pytest.approx((2 / 3 + 1) / 25)
    assert metrics["cf1_h"] == pytest.approx(1 / 6)
    assert metrics["cacc"] == pytest.approx((24 + 2 / 3) / 25)
    assert (metrics["n"], metrics["without_answer"], metrics["topics"]) == (3, 1, 1)


def test_priorities_by_hand() -> None:
    labels = [gold(1, "Low", (NEWS,)), gold(2, "Critical", (NEWS, RESCUE)), gold(3, None, (NEWS,))]
    run = Run("r", tuple(run_entry("E-1", n, p) for n, p in ((1, 0.2), (2, 0.4), (3, 0.6))))
    metrics = trec_is_metrics(labels, run)
    # Scaled to 0, 0.5 and 1; clipped to 0.25, 0.5. Gold 0.25 and 1. Levels Low and Medium for Low and Critical.
    assert metrics["perr_2019_a"] == pytest.approx(((0 + 0.25) / 2 + 0.25) / 2)
    assert metrics["perr_2019_h"] == pytest.approx(0.25)
    assert metrics["perr_a"] == pytest.approx((1 / 3 + 0) / 2)
    assert metrics["perr_h"] == 0
    assert metrics["priority_pearson"] == pytest.approx(1)
    assert metrics["without_priority"] == 1


def test_ndcg_equals_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    levels, scores = ("Low", "Medium", "High", "Critical"), generator.permutation(240) / 239
    labels = [gold(i, levels[generator.integers(4)], (NEWS,), topic=f"E-{i % 2}") for i in range(240)]
    run = Run("r", tuple(run_entry(f"E-{i % 2}", i, float(scores[i])) for i in range(240)))
    gains = np.array([0.25 * (1 + levels.index(str(tweet.priority))) for tweet in labels])
    expected = np.mean([sklearn.ndcg_score([gains[s::2]], [scores[s::2]], k=100) for s in (0, 1)])
    assert trec_is_metrics(labels, run)["ndcg_100"] == pytest.approx(expected)


def test_alert_worth_is_the_mean_of_two_means() -> None:
    labels = [
        gold(1, "High", ()),
        gold(2, "Low", ()),
        gold(3, "Low", ()),
        gold(4, "Critical", (), topic="E-2"),
    ]
    priorities = ((1, 1.0, "E-1"), (2, 0.9, "E-1"), (3, 0.0, "E-1"), (4, 0.1, "E-2"))
    run = Run("r", tuple(run_entry(topic, n, p) for n, p, topic in priorities))
    metrics = trec_is_metrics(labels, run)
    assert metrics["alert_worth_h"] == pytest.approx((0.3 - 1) / 2)
    assert metrics["alert_worth_a"] == pytest.approx((-0.35 + 0) / 2)


def test_constant_priorities_have_no_correlation() -> None:
    run = Run("r", (run_entry("E-1", 1, 0.5), run_entry("E-1", 2, 0.5)))
    assert trec_is_metrics([gold(1, "Low", ()), gold(2, "High", ())], run)["priority_pearson"] is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([gold(9, "Low", ())], "none of the 1 labelled tweets"),
        ([gold(1, None, ())], "no gold tweet has a priority"),
    ],
)
def test_refused_runs(labels: list[LabelledTweet], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        trec_is_metrics(labels, Run("r", (run_entry("E-1", 1, 0.5),)))
