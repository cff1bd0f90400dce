from __future__ import annotations

import numpy as np
import pytest

from mca_perception.errors import DatasetError
from mca_perception.identification.confidence import (
    CANDIDATES,
    confidences,
    fit_temperature,
    reliability,
)


def drawn(temperature: float, count: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Similarities of 1 to 8 products, and whether the best is right, as often as the softmax says."""
    rng = np.random.default_rng(seed)
    rows = [np.sort(rng.uniform(0.2, 1, rng.integers(1, 9)))[::-1].astype(np.float32) for _ in range(count)]
    return rows, rng.random(count) < confidences(rows, temperature)


def test_confidence_is_the_softmax_of_the_best() -> None:
    row = np.array([0.9, 0.8, 0.1], np.float32)
    expected = np.exp(0.9 / 0.1) / np.exp(np.array([0.9, 0.8, 0.1]) / 0.1).sum()
    found = confidences([row, row[:1], row[:0]], 0.1)
    assert found[0] == pytest.approx(expected, rel=1e-6)
    assert found[1] == 1
    assert np.isnan(found[2])


def test_only_the_best_products_count() -> None:
    row = np.linspace(0.9, 0.1, CANDIDATES + 30, dtype=np.float32)
    assert confidences([row], 0.5) == confidences([row[:CANDIDATES]], 0.5)


@pytest.mark.parametrize("temperature", [0.03, 0.3])
def test_fit_finds_the_temperature_and_calibrates(temperature) -> None:
    fitted = fit_temperature(*drawn(temperature, 4000))
    assert fitted == pytest.approx(temperature, rel=0.15)
    rows, correct = drawn(temperature, 4000, seed=1)
    before = reliability(confidences(rows, 1.0), correct)
    after = reliability(confidences(rows, fitted), correct)
    assert after["expected_calibration_error"] < 0.03 < before["expected_calibration_error"]
    assert after["brier_score"] < before["brier_score"]


@pytest.mark.parametrize("right", [True, False])
def test_answers_that_are_all_alike_fit_nothing(right) -> None:
    rows, correct = drawn(0.1, 20)
    with pytest.raises(DatasetError, match="more or harder picks"):
        fit_temperature(rows, np.full_like(correct, right))


def test_reliability_equals_a_count_by_hand() -> None:
    figures = reliability(np.array([0.05, 0.95, 0.91, 1.0]), np.array([False, True, False, True]))
    assert [(e["n"], e["accuracy"]) for e in figures["reliability"]] == [(1, 0.0), (3, pytest.approx(2 / 3))]
    mean = (0.95 + 0.91 + 1.0) / 3
    assert figures["expected_calibration_error"] == pytest.approx((0.05 + 3 * abs(mean - 2 / 3)) / 4)
    assert figures["brier_score"] == pytest.approx((0.05**2 + 0.05**2 + 0.91**2) / 4)
    assert reliability(np.zeros(0), np.zeros(0, bool))["expected_calibration_error"] is None
