"""Losses against float64 NumPy references, and the rules of hard negatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mca_perception.pretraining.losses import (
    hard_negatives,
    masked_prediction_loss,
    matching_labels,
    matching_loss,
)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_probabilities[np.arange(len(targets)), targets].mean())


def test_masked_prediction_equals_the_numpy_reference() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(7, 11)) * 5, rng.integers(11, size=7)
    found = masked_prediction_loss(torch.tensor(logits), torch.tensor(targets))
    assert found.item() == pytest.approx(cross_entropy(logits, targets), abs=1e-9)


def test_masked_prediction_without_hidden_positions_is_a_differentiable_zero() -> None:
    logits = torch.empty(0, 5, requires_grad=True)
    loss = masked_prediction_loss(logits, torch.empty(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0


def test_masked_prediction_gradient() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 4, 2, 2])
    assert torch.autograd.gradcheck(lambda values: masked_prediction_loss(values, targets), logits)


def test_matching_equals_the_numpy_reference() -> None:
    logits = np.random.default_rng(1).normal(size=(12, 2))
    labels = np.array([1] * 4 + [0] * 8)
    assert matching_loss(torch.tensor(logits)).item() == pytest.approx(
        cross_entropy(logits, labels), abs=1e-9
    )


@pytest.mark.parametrize("count", [1, 2, 7])
def test_one_matching_pair_in_three(count: int) -> None:
    labels = matching_labels(count, torch.device("cpu"))
    assert labels.tolist() == [1] * count + [0] * 2 * count


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_positive_is_never_drawn(scale: float) -> None:
    similarity = torch.randn(6, 6) * scale + 50 * torch.eye(6)
    rows = torch.arange(6)
    for seed in range(200):
        negatives = hard_negatives(similarity, generator=torch.Generator().manual_seed(seed))
        assert (negatives.images != rows).all()
        assert (negatives.texts != rows).all()


def test_other_items_of_the_same_text_are_not_drawn() -> None:
    labels = torch.tensor([3, 3, 3, 5])
    for seed in range(100):
        negatives = hard_negatives(torch.zeros(4, 4), labels, generator=torch.Generator().manual_seed(seed))
        for drawn in negatives:
            assert (labels[drawn] != labels).all()


def test_where_all_match_the_positive_is_still_not_drawn() -> None:
    negatives = hard_negatives(torch.eye(3), torch.tensor([1, 1, 1]))
    assert (negatives.images != torch.arange(3)).all()


def test_negatives_follow_the_softmax_without_the_diagonal() -> None:
    """Images by texts: text 2 looks like image 0, and image 1 looks like text 2."""
    similarity = torch.tensor([[9.0, 0.0, 2.0], [0.0, 9.0, 1.0], [0.0, 0.0, 9.0]])
    draws = [hard_negatives(similarity, generator=torch.Generator().manual_seed(s)) for s in range(3000)]
    texts_of_image_0 = np.bincount([int(draw.texts[0]) for draw in draws], minlength=3) / 3000
    images_of_text_2 = np.bincount([int(draw.images[2]) for draw in draws], minlength=3) / 3000
    weights = np.exp([0.0, 2.0])
    assert np.allclose(texts_of_image_0, [0, *(weights / weights.sum())], atol=0.03)
    weights = np.exp([2.0, 1.0])
    assert np.allclose(images_of_text_2, [*(weights / weights.sum()), 0], atol=0.03)
