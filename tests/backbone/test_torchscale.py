"""Agreement with torchscale's BEiT-3, the implementation that the public checkpoints come from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mca_perception.backbone import create_beit3
from tests.support.checkpoints import torchscale_model

TOLERANCE = 1e-5
BOTH = ("vision", "text")


def reference_model(depth: int, dim: int = 768, heads: int = 12, normalize_output: bool = True) -> nn.Module:
    """torchscale's BEiT-3 with random weights and the official vocabulary."""
    return torchscale_model(depth, dim, heads, vocabulary=64010, normalize_output=normalize_output)


def inputs(seed: int) -> dict[str, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, 224, 224, generator=generator)
    ids = torch.randint(4, 64000, (2, 20), generator=generator)
    padding = torch.zeros(2, 20, dtype=torch.bool)
    padding[0, 13:] = True
    ids[padding] = 1
    return {
        "image": (images, None, None),
        "text": (None, ids, None),
        "text with padding": (None, ids, padding),
        "fused": (images, ids, None),
        "fused with padding": (images, ids, padding),
    }


def largest_difference(model: nn.Module, reference: nn.Module, mode: str, seed: int) -> float:
    images, ids, padding = inputs(seed)[mode]
    with torch.inference_mode():
        ours = model(images, ids, padding)["encoder_out"]
        theirs = reference(ids, images, padding)["encoder_out"]
    keep = torch.ones(ours.shape[:2], dtype=torch.bool)
    if padding is not None:  # states at padding mean nothing
        keep[:, -padding.shape[1] :] = ~padding
    return float((ours - theirs)[keep].abs().max())


@pytest.fixture(scope="module", params=[0, 1, 2])
def reduced(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, int]:
    """Base width at depth 2, three seeds."""
    torch.manual_seed(request.param)
    reference = reference_model(depth=2)
    model = create_beit3("beit3_base_patch16", depth=2, modalities=BOTH).eval()
    model.load_state_dict(reference.state_dict())
    return model, reference, request.param


@pytest.mark.parametrize("mode", ["image", "text", "text with padding", "fused", "fused with padding"])
def test_reduced_depth(reduced: tuple[nn.Module, nn.Module, int], mode: str) -> None:
    model, reference, seed = reduced
    assert largest_difference(model, reference, mode, seed) <= TOLERANCE


@pytest.mark.parametrize("mode", ["image", "text with padding", "fused with padding"])
def test_without_the_final_norm(mode: str) -> None:
    torch.manual_seed(3)
    reference = reference_model(depth=1, dim=192, heads=3, normalize_output=False)
    model = create_beit3("beit3_nano_patch16", depth=1, modalities=BOTH, normalize_output=False).eval()
    model.load_state_dict(reference.state_dict())
    assert largest_difference(model, reference, mode, seed=3) <= TOLERANCE


@pytest.mark.slow
def test_base_in_full() -> None:
    """All 12 blocks of base, 220,987,392 parameters."""
    torch.manual_seed(4)
    reference = reference_model(depth=12)
    model = create_beit3("beit3_base_patch16", modalities=BOTH).eval()
    model.load_state_dict(reference.state_dict(), assign=True)
    for mode in ("image", "text with padding", "fused with padding"):
        assert largest_difference(model, reference, mode, seed=4) <= TOLERANCE
