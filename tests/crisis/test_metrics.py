"""Metrics of classification beside scikit-learn's, calibration, and the paired bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from mca_perception.crisis.metrics import (
    calibration,
    classification_metrics,
    confusion_matrix,
    paired_bootstrap,
    weighted_f1,
)
from mca_perception.errors import DatasetError

NAMES = ("a", "b", "c", "d", "e")


def draw(seed: int, n: int = 200, used: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, used, n), generator.integers(0, used, n)


@pytest.mark.parametrize(("seed", "used"), [(0, 5), (1, 5), (2, 2), (3, 1), (4, 3)])
def test_equal_to_scikit_learn(seed: int, used: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, predictions = draw(seed, used=used)
    ours = classification_metrics(confusion_matrix(labels, predictions, 5), NAMES)
    for average in ("weighted", "macro"):
        theirs = sklearn.precision_recall_fscore_support(
            labels, predictions, average=average, zero_division=0
        )
        assert ours[f"{average}_f1"] == pytest.approx(theirs[2], abs=1e-12)
    precision, recall, _, _ = sklearn.precision_recall_fscore_support(
        labels, predictions, average="weighted", zero_division=0
    )
    assert (ours["weighted_precision"], ours["weighted_recall"]) == pytest.approx(
        (precision, recall), abs=1e-12
    )
    assert ours["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predictions), abs=1e-12)
    assert ours["confusion_matrix"] == sklearn.confusion_matrix(labels, predictions, labels=range(5)).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_weighted_recall_is_accuracy(seed: int) -> None:
    metrics = classification_metrics(confusion_matrix(*draw(seed), 5), NAMES)
    assert metrics["weighted_recall"] == pytest.approx(metrics["accuracy"], abs=1e-12)


def test_by_hand() -> None:
    metrics = classification_metrics(confusion_matrix([0, 0, 0, 1], [0, 0, 1, 1], 2), ("x", "y"))
    assert metrics["classes"]["x"] == {"n": 3, "precision": 1.0, "recall": pytest.approx(2 / 3), "f1": 0.8}
    assert metrics["weighted_f1"] == pytest.approx(0.75 * 0.8 + 0.25 * 2 / 3)
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert (metrics["accuracy"], metrics["n"]) == (0.75, 4)


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [([0], [0, 1], "1 labels but 2"), ([0], [2], "outside"), ([-1], [0], "outside")],
)
def test_refused_labels(labels: list[int], predictions: list[int], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        confusion_matrix(labels, predictions, 2)


def test_calibration_by_hand() -> None:
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [1.0, 0.0]]
    result = calibration([0, 1, 1, 0], probabilities, bins=10)
    # Bins: 0.6 (one, right), 0.9 and 1.0 together (three, two right).
    assert [entry["n"] for entry in result["reliability"]] == [1, 3]
    expected = (1 * abs(0.6 - 1) + 3 * abs(2.8 / 3 - 2 / 3)) / 4
    assert result["expected_calibration_error"] == pytest.approx(expected)
    assert result["brier"] == pytest.approx((2 * 0.01 + 2 * 0.81 + 2 * 0.16 + 0) / 4)
    assert result["negative_log_likelihood"] == pytest.approx(-np.log([0.9, 0.1, 0.6, 1.0]).mean())


def test_bootstrap_of_a_model_with_itself_is_nothing() -> None:
    labels, predictions = draw(0)
    result = paired_bootstrap(labels, predictions, predictions, 5, resamples=200)
    assert (result.difference, result.interval95, result.share_not_better) == (0, (0, 0), 1)


def test_bootstrap_agrees_with_resampling_posts() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 300)
    better = np.where(generator.random(300) < 0.8, labels, generator.integers(0, 3, 300))
    worse = np.where(generator.random(300) < 0.5, labels, generator.integers(0, 3, 300))
    result = paired_bootstrap(labels, better, worse, 3, resamples=4000, seed=1)
    rows = generator.integers(0, 300, (2000, 300))
    drawn = [weighted_f1(labels[r], better[r], 3) - weighted_f1(labels[r], worse[r], 3) for r in rows]
    assert result.interval95 == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.015)
    assert result.difference == weighted_f1(labels, better, 3) - weighted_f1(labels, worse, 3)
    assert result.interval95[0] > 0
    assert result.share_not_better == 0
