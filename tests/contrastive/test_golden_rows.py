"""Golden values per anchor, and what the weights of hard negatives add up to (specification, sections 9 and 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mca_perception.contrastive import InnerForm, lacln, supcon_in
from mca_perception.contrastive.kernel import Anchors, Side, anchors_at, prepare
from mca_perception.contrastive.supervised import _outer

ANGLES = torch.deg2rad(torch.tensor([0, 20, 60, 100, 150, 200], dtype=torch.float64))
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
Y = torch.tensor([0, 0, 0, 1, 1, 1])


def rows_of(loss: Callable[[Anchors], Tensor], T: float, dtype: torch.dtype = torch.float64) -> list[float]:
    batch = prepare(X.to(dtype), Y, needs_negatives=True)
    anchors = anchors_at(batch, batch.contrasts[batch.anchors], batch.contrasts, batch.anchors, T)
    return [float(value) for value in loss(anchors)]


@pytest.mark.parametrize(
    ("loss", "T", "expected"),
    [
        (_outer, 0.5, (0.892836, 0.859549, 1.313417, 1.935371, 0.876242, 1.105178)),
        (InnerForm(0.5, beta_neg=1), 0.5, (0.159592, 0.268615, 0.943819, 1.240986, 0.274673, 0.114733)),
        (
            InnerForm(0.5, 1, 1, 0.05, 0.01),
            0.5,
            (0.165899, 0.254737, 0.959773, 1.708697, 0.254725, 0.162353),
        ),
        (InnerForm(0.1, 1, 1, 0.05, 0.01), 0.1, (0, 0, 2.476929, 9.138260, 0, 0.000184)),
    ],
    ids=["outer", "LACLN", "SCL-RHE", "SCL-RHE, floored"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_golden_values_of_every_anchor(loss, T, expected, dtype, tolerance) -> None:
    assert rows_of(loss, T, dtype) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("T", [0.1, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_weighted_negatives_never_weigh_less(T: float, seed: int) -> None:
    """Weights of mean 1 that grow with similarity: the weighted sum is at least the plain one (Cauchy-Schwarz)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 4, dtype=torch.float64, generator=generator)
    y = torch.randint(3, (16,), generator=generator)
    similarity = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(x, dim=1).T / T
    negatives = y[:, None] != y
    weights = similarity.exp() * negatives
    weights = weights * negatives.sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    assert torch.allclose(weights.sum(1) / negatives.sum(1), torch.ones(16, dtype=torch.float64))
    plain, weighted = (w * similarity.exp() * negatives for w in (1.0, weights))
    assert (weighted.sum(1) >= plain.sum(1) - 1e-9).all()
    assert lacln(x, y, T).item() > supcon_in(x, y, T).item()


def test_gradient_of_the_tilted_positives() -> None:
    """``d log E / d s = (1 - b) softmax((1 - b) s) + b softmax(-b s)`` (section 8, item 6)."""
    similarity = torch.tensor([[-1.0, 0.2, 0.7]], dtype=torch.float64, requires_grad=True)
    members, size = torch.ones(1, 3, dtype=torch.bool), torch.tensor([3.0], dtype=torch.float64)
    side = Side(similarity, members, size)
    for b in (0.25, 1.0, 2.0):
        expected = (1 - b) * ((1 - b) * similarity).softmax(1) + b * (-b * similarity).softmax(1)
        value = InnerForm(1.0, beta_pos=b).expectations(Anchors(side, side, torch.tensor([0]))).positive
        (gradient,) = torch.autograd.grad(value.sum(), similarity)
        assert torch.allclose(gradient, expected)
        assert (gradient.min() < 0) == (b > 1)  # above 1 easy positives are repelled
