from __future__ import annotations

import numpy as np
import pytest

from mca_perception.defects.metrics import argmax_figures, curves, recall_at_fpr

sklearn_metrics = pytest.importorskip("sklearn.metrics")
NAMES = ("nominal", "multi_pick", "package_defect")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decimals", [8, 1])  # one decimal: most scores are tied
def test_curves_equal_scikit_learn(seed: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    positive = rng.random(300) < 0.3
    scores = np.round(rng.normal(positive * 0.8, 1), decimals)
    found = curves(scores, positive)
    fpr, recall, thresholds = sklearn_metrics.roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(found.fpr, fpr[1:])
    np.testing.assert_allclose(found.recall, recall[1:])
    np.testing.assert_array_equal(found.thresholds, thresholds[1:])
    assert found.roc_auc == pytest.approx(sklearn_metrics.roc_auc_score(positive, scores))
    assert found.average_precision == pytest.approx(sklearn_metrics.average_precision_score(positive, scores))
    for limit in (0.01, 0.05, 0.3):
        value, threshold = recall_at_fpr(found, limit)
        assert value == pytest.approx(recall[fpr <= limit].max())
        assert np.mean(scores[~positive] >= threshold) <= limit
        assert np.mean(scores[positive] >= threshold) == pytest.approx(value)


@pytest.mark.parametrize("seed", range(3))
def test_argmax_figures_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, 200, p=[0.7, 0.2, 0.1])
    predicted = np.where(rng.random(200) < 0.6, labels, rng.choice(3, 200))
    figures = argmax_figures(predicted, labels, NAMES)
    precision, recall, _, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=[1, 2]
    )
    for row, name in enumerate(NAMES[1:]):
        negatives, alarms = sklearn_metrics.confusion_matrix(labels == row + 1, predicted == row + 1)[0]
        assert figures[name]["precision"] == pytest.approx(precision[row])
        assert figures[name]["recall"] == pytest.approx(recall[row])
        assert figures[name]["fpr"] == pytest.approx(alarms / (negatives + alarms))
        assert figures[name]["positives"] == support[row]
    assert figures["combined"]["recall"] == pytest.approx(
        sklearn_metrics.recall_score(labels > 0, predicted > 0)
    )


def test_absent_classes_have_no_figures() -> None:
    nothing = curves(np.array([0.2, 0.4]), np.array([False, False]))
    assert recall_at_fpr(nothing, 0.01) == (None, None)
    assert argmax_figures(np.zeros(2, int), np.zeros(2, int), NAMES)["multi_pick"]["recall"] is None


def test_no_alarm_at_all_is_a_recall_of_zero() -> None:
    top = curves(np.array([0.9, 0.2]), np.array([False, True]))
    assert recall_at_fpr(top, 0.01) == (0.0, float("inf"))
