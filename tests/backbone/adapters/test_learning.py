"""Adapters learn what the frozen backbone does not know: which colour a caption speaks of."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mca_perception.backbone import BEiT3
from mca_perception.backbone.adapters import MultiWayConfig, inject
from mca_perception.pretraining.metrics import image_text_recall

COLOURS = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
PAIRS = len(COLOURS)
TEMPERATURE = 0.07


def images(seed: int) -> Tensor:
    """One image of every colour, with noise twice as strong."""
    noise = torch.randn(PAIRS, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return COLOURS[:, :, None, None] + 2 * noise


def captions() -> Tensor:
    """``<s> red green blue </s>``, each channel a word for dark or bright."""
    words = 10 + 2 * torch.arange(3) + (COLOURS > 0).long()
    return F.pad(F.pad(words, (1, 0), value=0), (0, 1), value=2)


def similarity(model: BEiT3, seed: int) -> Tensor:
    """Cosines of both CLS states of the dual encoder."""
    image = F.normalize(model(images=images(seed))["encoder_out"][:, 0], dim=-1)
    text = F.normalize(model(text_ids=captions())["encoder_out"][:, 0], dim=-1)
    return image @ text.T


def contrastive_loss(model: BEiT3, seed: int) -> Tensor:
    """Symmetric InfoNCE: specification of the framework, section 6.1."""
    logits, labels = similarity(model, seed) / TEMPERATURE, torch.arange(PAIRS)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@torch.no_grad()
def held_out(model: BEiT3) -> tuple[float, float]:
    """Loss, and mean hit rate at 1 of both directions, on noise that training never saw."""
    hits = image_text_recall(similarity(model, 10_000).numpy(), range(PAIRS), ks=(1,))
    return float(contrastive_loss(model, 10_000)), sum(hits.values()) / 2


@pytest.mark.parametrize(
    "settings", [{"enhancer_dim": 0}, {"bottleneck": 0}, {}], ids=["extractor", "enhancer", "both"]
)
def test_adapter_learns_on_a_frozen_backbone(make_backbone: Callable[..., BEiT3], settings: Any) -> None:
    model = make_backbone(depth=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    frozen_loss, frozen_hits = held_out(model)
    inject(model, MultiWayConfig(dropout=0.0, **settings))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(50):
        loss = contrastive_loss(model, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    learned_loss, learned_hits = held_out(model)
    assert learned_loss < 0.5 * frozen_loss
    assert learned_hits >= frozen_hits + 0.5
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
