"""A small Multiway Transformer with both experts, and one input of every mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mca_perception.backbone import BEiT3, create_beit3

Inputs = dict[str, dict[str, Tensor]]


@pytest.fixture
def make_backbone() -> Callable[..., BEiT3]:
    """Builds seeded backbones in evaluation mode; two calls with equal arguments give equal weights."""

    def make(name: str = "beit3_nano_patch16", seed: int = 0, **overrides: object) -> BEiT3:
        torch.manual_seed(seed)
        settings = {
            "modalities": ("vision", "text"),
            "img_size": 32,
            "depth": 2,
            "vocab_size": 100,
            **overrides,
        }
        return create_beit3(name, **settings).eval()  # type: ignore[arg-type]

    return make


@pytest.fixture
def backbone(make_backbone: Callable[..., BEiT3]) -> BEiT3:
    """nano with two blocks."""
    return make_backbone()


@pytest.fixture
def inputs() -> Inputs:
    """Images, texts with padding, and pairs of both."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    text = {
        "text_ids": torch.randint(4, 100, (3, 6), generator=generator),
        "text_padding_mask": torch.tensor([[False] * 6, [False] * 4 + [True] * 2, [False] * 6]),
    }
    return {"vision": {"images": images}, "text": text, "fused": {"images": images, **text}}
