from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mca_perception.identification.fusion import ReferenceFusion, ViewFusion


def unit(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [True, False, False]])


@pytest.mark.parametrize(
    "fusion", [ViewFusion(3, 8, 16), ReferenceFusion(8, "mean"), ReferenceFusion(8, "attention")]
)
def test_untrained_fusion_is_the_mean_of_what_is_present(fusion) -> None:
    rows = unit(4, 3, 8)
    fused = fusion(rows, PRESENT)
    for i, present in enumerate(PRESENT):
        expected = F.normalize(rows[i, present].mean(0), dim=-1)
        torch.testing.assert_close(fused[i], expected, atol=1e-6, rtol=0)


def trained(fusion: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return fusion


@pytest.mark.parametrize("fusion", [ViewFusion(3, 8, 16), ReferenceFusion(8, "attention")])
def test_what_is_missing_does_not_matter(fusion) -> None:
    rows, fusion = unit(4, 3, 8), trained(fusion)
    fused = fusion(rows, PRESENT)
    torch.testing.assert_close(fused.norm(dim=1), torch.ones(4))
    changed = torch.where(PRESENT[..., None], rows, torch.full_like(rows, 7.0))
    torch.testing.assert_close(fusion(changed, PRESENT), fused)


def test_views_are_told_apart_and_references_are_not() -> None:
    rows, everything = unit(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)
    turned = rows.flip(1)
    views, references = trained(ViewFusion(3, 8, 16)), trained(ReferenceFusion(8, "attention"))
    assert not torch.allclose(views(turned, everything), views(rows, everything), atol=1e-3)
    torch.testing.assert_close(references(turned, everything), references(rows, everything))


@pytest.mark.parametrize("fusion", [ViewFusion(3, 4, 5), ReferenceFusion(4, "attention")])
def test_gradient(fusion, monkeypatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # stay in float64
    fusion = trained(fusion).double()
    rows = unit(4, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fusion(x, PRESENT), (rows,))
