"""Likeness of two embeddings against direct formulas with full kernel matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from mca_perception.contrastive import alignment_metrics
from mca_perception.contrastive.alignment_metrics import (
    linear_cka,
    matching_similarity,
    modality_gap,
    mutual_knn_overlap,
)
from mca_perception.errors import ContrastiveError

Array = NDArray[np.float64]


def features(seed: int, count: int = 30, width: int = 5) -> Array:
    return np.random.default_rng(seed).normal(loc=1, size=(count, width))


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def direct_hsic1(x: Array, y: Array) -> float:
    """Specification of the framework, section 8.2."""
    n = len(x)
    k, m = (z @ z.T * (1 - np.eye(n)) for z in (x, y))
    one = np.ones(n)
    constant = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ m) + constant - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3)))


def test_plain_cka() -> None:
    x, y = features(0), features(1, width=8)
    a, b = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-12)


def test_unbiased_cka() -> None:
    x, y = features(0), features(0)[:, :3] + features(1, width=3)
    expected = direct_hsic1(x, y) / np.sqrt(direct_hsic1(x, x) * direct_hsic1(y, y))
    assert linear_cka(x, y, unbiased=True) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_ignores_rotation_scale_and_offset(unbiased: bool) -> None:
    x = features(2)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    assert linear_cka(x, 7 * x @ rotation + 3, unbiased=unbiased) == pytest.approx(1, abs=1e-9)


def test_unbiased_cka_of_unrelated_wide_features_is_near_zero() -> None:
    x, y = features(4, 60, 300), features(5, 60, 300)
    assert linear_cka(x, y) > 0.7
    assert abs(linear_cka(x, y, unbiased=True)) < 0.05


def test_modality_gap_and_matching_similarity() -> None:
    x, y = features(6), -features(7)
    assert modality_gap(2 * x, y) == pytest.approx(np.linalg.norm(unit(x).mean(0) - unit(y).mean(0)))
    assert modality_gap(x, x) == 0
    assert matching_similarity(2 * x, y) == pytest.approx(np.diag(unit(x) @ unit(y).T))


@pytest.mark.parametrize("k", [1, 5, 29])
@pytest.mark.parametrize("block_elements", [2**22, 100])
def test_mutual_neighbours(k: int, block_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment_metrics, "BLOCK_ELEMENTS", block_elements)
    x, y = features(8), features(8, width=5) + 0.3 * features(9)
    shared = []
    for i in range(30):
        nearest = []
        for z in (unit(x), unit(y)):
            order = np.argsort(-(z @ z[i]))
            nearest.append(set(order[order != i][:k]))
        shared.append(len(nearest[0] & nearest[1]) / k)
    assert mutual_knn_overlap(x, y, k) == pytest.approx(np.mean(shared), abs=1e-12)
    assert mutual_knn_overlap(x, 2 * x, k) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_cka(features(0), features(0, 29)), "30 and 29 items"),
        (lambda: linear_cka(features(0, 3), features(0, 3), unbiased=True), "at least 4"),
        (lambda: linear_cka(np.ones((5, 2)), features(0, 5)), "does not vary"),
        (lambda: modality_gap(features(0), features(0, width=4)), "share no space"),
        (lambda: mutual_knn_overlap(features(0), features(1), 30), "30 neighbours"),
        (lambda: matching_similarity(features(0), features(1, 3)), "are no pairs"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ContrastiveError, match=message):
        call()
