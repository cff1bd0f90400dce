"""The recipe's losses against float64 references; duplicates in a batch do not repel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from mca_perception.contrastive import InfoNCE
from mca_perception.identification.losses import create_loss, trained_temperature
from mca_perception.identification.recipe import IdentificationRecipe

PRODUCTS = torch.tensor([0, 1, 0, 2, 3, 1])


def recipe(**settings: object) -> IdentificationRecipe:
    return IdentificationRecipe.model_validate({"data": "nowhere", **settings})


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    first, second = F.normalize(rows, dim=-1)
    return first, second


def log_sum_exp(values: list[float]) -> float:
    return float(np.logaddexp.reduce(values))


def by_numpy(name: str) -> float:
    """The loss at its initial settings, by loops in float64."""
    q, r = (part.numpy() for part in pairs())
    y = PRODUCTS.numpy()
    if name == "info_nce":
        total = 0.0
        for logits in (q @ r.T / 0.07, r @ q.T / 0.07):
            for i in range(6):
                kept = [j for j in range(6) if j == i or y[j] != y[i]]
                total += log_sum_exp([logits[i, j] for j in kept]) - logits[i, i]
        return total / 12
    if name == "sigmoid":
        signs = np.where(y[:, None] == y, 1, -1)
        return float(np.log1p(np.exp(-signs * (10 * (q @ r.T) - 10))).sum() / 6)
    rows, labels = np.concatenate([q, r]), np.concatenate([y, y])
    logits = rows @ rows.T / 0.1
    total = 0.0
    for i in range(12):
        others = [j for j in range(12) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        total += log_sum_exp([logits[i, j] for j in others]) - float(np.mean(logits[i, positives]))
    return total / 12


@pytest.mark.parametrize("name", ["info_nce", "sigmoid", "supcon"])
def test_equals_the_numpy_reference(name) -> None:
    loss = create_loss(recipe(loss=name), 8, 4).double()
    assert loss(*pairs(), PRODUCTS).item() == pytest.approx(by_numpy(name), abs=1e-6)


@pytest.mark.parametrize("name", ["info_nce", "sigmoid", "supcon", "clce", "scl_rhe"])
def test_loss_falls_when_products_gather(name) -> None:
    torch.manual_seed(0)
    loss = create_loss(recipe(loss=name), 8, 4).double()
    apart = loss(*pairs(), PRODUCTS)
    gathered = torch.eye(8, dtype=torch.float64)[PRODUCTS]
    assert torch.isfinite(apart)
    assert loss(gathered, gathered, PRODUCTS) < apart
    assert trained_temperature(loss) > 0


def test_contrast_weight_of_0_leaves_cross_entropy() -> None:
    torch.manual_seed(0)
    loss = create_loss(recipe(loss="clce", contrast_weight=0), 8, 4).double()
    rows, labels = torch.cat(pairs()), torch.cat([PRODUCTS, PRODUCTS])
    expected = F.cross_entropy(loss.classifier(rows), labels)
    assert loss(*pairs(), PRODUCTS).item() == pytest.approx(expected.item(), abs=1e-9)


def test_duplicates_of_a_product_do_not_repel() -> None:
    same = torch.zeros(6, dtype=torch.int64)
    queries, references = (part.requires_grad_() for part in pairs())
    create_loss(recipe(), 8, 4).double()(queries, references, same).backward()
    assert queries.grad.abs().max() < 1e-9
    assert references.grad.abs().max() < 1e-9


def test_default_is_info_nce_with_clips_temperature() -> None:
    loss = create_loss(recipe(), 8, 4)
    assert isinstance(loss, InfoNCE)
    assert trained_temperature(loss) == pytest.approx(0.07, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainable": "fusion"}, "views of 2 to 4"),
        ({"references": 3}, "go together"),
        ({"reference_fusion": "mean"}, "go together"),
        ({"loss_temperature": 0.1}, "learns its temperature"),
        ({"loss": "triplet"}, "loss"),
        ({"views": 5}, "views"),
        ({"view_dropout": 1.0}, "view_dropout"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**settings)
