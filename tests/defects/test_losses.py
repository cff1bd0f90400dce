from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mca_perception.defects.losses import class_balanced_weights, focal_loss
from mca_perception.defects.model import DefectConfig, DefectHead


def test_focal_loss_without_focus_is_weighted_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(20, 3), torch.randint(0, 3, (20,))
    weights = torch.tensor([0.5, 1.0, 2.0])
    expected = F.cross_entropy(logits, labels, weights)
    torch.testing.assert_close(focal_loss(logits, labels, weights, 0.0), expected)


def test_focal_loss_turns_from_what_is_already_right() -> None:
    logits, labels = torch.tensor([[8.0, 0.0, 0.0], [0.0, 0.5, 0.0]]), torch.tensor([0, 1])
    share = [float(focal_loss(logits[:1], labels[:1], torch.ones(3), gamma)) for gamma in (0.0, 2.0)]
    assert share[1] < 1e-5 * share[0]


@pytest.mark.parametrize("beta", [0.9, 0.999])
def test_class_balanced_weights(beta: float) -> None:
    weights = class_balanced_weights([1000, 100, 10], beta)
    assert weights.mean() == pytest.approx(1)
    assert weights[0] <= weights[1] < weights[2]
    assert weights[1] / weights[2] == pytest.approx((1 - beta**10) / (1 - beta**100), rel=1e-4)
    assert class_balanced_weights([5, 50, 0], 0.0).tolist() == [1, 1, 0]


@pytest.mark.parametrize("blocks", [0, 2])
def test_absent_views_do_not_matter(blocks: int) -> None:
    torch.manual_seed(1)
    head = DefectHead(24, DefectConfig(hidden_dim=8, queries=2, blocks=blocks, token_dim=8)).eval()
    logits, evidence = head(torch.randn(3, 10, 24))
    assert logits.shape == (3, 3)
    views = torch.stack(
        [torch.cat([evidence, torch.full((2, 8), 100.0)]), torch.cat([evidence, torch.zeros(2, 8)])]
    )
    present = torch.tensor([[True, True, True, False, False]] * 2)
    found = head.views(views, present)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[:1], head.views(evidence[None], torch.ones(1, 3, dtype=torch.bool)))
