"""Neighbours, votes and episodes, against plain loops and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mca_perception.classification import evaluation
from mca_perception.classification.evaluation import few_shot, knn_probabilities, nearest_neighbours, unit
from mca_perception.errors import DatasetError


def test_neighbours_equal_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BLOCK_ROWS", 7)
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(40, 5)), rng.normal(size=(17, 5))
    index, cosine = nearest_neighbours(queries, rows, 4)
    full = unit(queries) @ unit(rows).T
    assert (index == np.argsort(-full, axis=1)[:, :4]).all()
    assert cosine == pytest.approx(-np.sort(-full, axis=1)[:, :4])


def test_a_row_is_not_its_own_neighbour() -> None:
    rows = np.random.default_rng(1).normal(size=(12, 3))
    picked = np.array([3, 5])
    index, _ = nearest_neighbours(rows[picked], rows, 11, own=picked)
    assert all(number not in found for number, found in zip(picked, index, strict=True))
    with pytest.raises(DatasetError, match="12 neighbours wanted among 11"):
        nearest_neighbours(rows, rows, 12, own=np.arange(12))


def test_votes_are_weighted_by_similarity() -> None:
    votes = knn_probabilities(
        np.array([[0, 1, 2]]), np.array([[0.9, 0.8, 0.8]], np.float32), np.array([1, 0, 0]), 3, 0.1
    )
    share = 1 / (1 + 2 * np.exp(-1))
    assert votes[0] == pytest.approx([1 - share, share, 0])


def test_separate_classes_are_told_apart_from_one_shot() -> None:
    labels = np.repeat(np.arange(8), 9)
    rows = np.eye(8)[labels] + 0.01 * np.random.default_rng(2).normal(size=(72, 8))
    result = few_shot(rows, labels, 1, episodes=30)
    assert result == (1.0, 0.0, 8)


def test_noise_gives_chance_and_its_interval() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(10), 21)
    rows = rng.normal(size=(210, 16))
    result = few_shot(rows, labels, 5, episodes=200, seed=4)
    assert result == few_shot(rows, labels, 5, episodes=200, seed=4)
    assert abs(result.accuracy - 0.2) < 4 * result.interval
    assert 0 < result.interval < 0.03


def test_small_classes_take_no_part() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 2])
    assert few_shot(np.random.default_rng(5).normal(size=(7, 2)), labels, 2, ways=2, episodes=3).classes == 2
    with pytest.raises(DatasetError, match="2 classes have more than 2 images, 5-way 2-shot episodes need 5"):
        few_shot(np.zeros((7, 2)), labels, 2)
