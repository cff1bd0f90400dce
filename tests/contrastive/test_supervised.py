"""Label-aware losses: golden values, a plain float64 loop, identities, and every odd batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mca_perception.contrastive import (
    InnerForm,
    clce,
    contrast_statistics,
    kernel,
    lacln,
    lacvit,
    scl_rhe,
    supcon_in,
    supcon_out,
    triplet_semi_hard,
    two_views,
)
from mca_perception.errors import ContrastiveError

Array = NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]

ANGLES = torch.deg2rad(torch.tensor([0, 20, 60, 100, 150, 200], dtype=torch.float64))
GOLDEN_X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
GOLDEN_Y = torch.tensor([0, 0, 0, 1, 1, 1])
# Specification of the contrastive methods, section 9.
GOLDEN = {
    0.1: (2.60812615, 0.35861638, 0.62675316, 1.59851154, 1.25743135, 1.93589551),
    0.5: (1.16376545, 0.34609018, 0.50040313, 0.43745013, 0.46516946, 0.58436387),
}
BETAS_AND_RATES = ((0, 0, 0, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0.5, 0.5, 0.05, 0.01), (1, 1, 0.05, 0.01))


def golden_losses(x: Tensor, y: Tensor, T: float) -> list[Tensor]:
    return [
        supcon_out(x, y, T),
        supcon_in(x, y, T),
        lacln(x, y, T),
        *(scl_rhe(x, y, T, *settings) for settings in BETAS_AND_RATES[2:]),
    ]


def random_batch(seed: int = 0, rows: int = 14, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (rows,), generator=generator)


def reference_losses(x: Array, y: Array, loss: Callable[[Array, Array], float]) -> float:
    """Mean of ``loss(similarities to positives, similarities to negatives)`` over anchors, one at a time."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = []
    for i in range(len(x)):
        cosines = x @ x[i]
        positives = cosines[[j for j in range(len(x)) if j != i and y[j] == y[i]]]
        negatives = cosines[y != y[i]]
        value = loss(positives, negatives)
        if not math.isnan(value):
            values.append(value)
    return float(np.mean(values))


def outer_reference(T: float) -> Callable[[Array, Array], float]:
    def loss(positives: Array, negatives: Array) -> float:
        if not len(positives):
            return math.nan
        total = np.exp(positives / T).sum() + np.exp(negatives / T).sum()
        return float(-np.log(np.exp(positives / T) / total).mean())

    return loss


def inner_reference(
    T: float, beta_pos: float, beta_neg: float, eps_pos: float, eps_neg: float
) -> Callable[[Array, Array], float]:
    def tilted(s: Array, b: float) -> float:
        return float(np.exp((1 + b) * s).mean() / np.exp(b * s).mean())

    def loss(positives: Array, negatives: Array) -> float:
        if not len(positives) or not len(negatives):
            return math.nan
        p, n = positives / T, negatives / T
        of_p = (tilted(p, -beta_pos) - eps_pos * tilted(n, -beta_pos)) / (1 - eps_pos)
        of_n = (tilted(n, beta_neg) - eps_neg * tilted(p, beta_neg)) / (1 - eps_neg)
        of_p, of_n = (max(value, np.exp(-1 / T)) for value in (of_p, of_n))
        return float(-np.log(len(p) * of_p / (len(p) * of_p + len(n) * of_n)))

    return loss


def triplet_reference(margin: float) -> Callable[[Array, Array], float]:
    def loss(positives: Array, negatives: Array) -> float:
        if not len(positives) or not len(negatives):
            return math.nan
        values = []
        for to_positive in 2 - 2 * positives:
            beyond = [d for d in 2 - 2 * negatives if d > to_positive]
            chosen = min(beyond) if beyond else max(2 - 2 * negatives)
            values.append(max(0.0, to_positive - chosen + margin))
        return float(np.mean(values))

    return loss


@pytest.mark.parametrize("T", GOLDEN)
def test_golden_values(T: float) -> None:
    found = [value.item() for value in golden_losses(GOLDEN_X, GOLDEN_Y, T)]
    assert found == pytest.approx(GOLDEN[T], abs=1e-8)
    assert lacvit(GOLDEN_X, GOLDEN_Y, T).item() == pytest.approx(GOLDEN[T][0], abs=1e-8)


@pytest.mark.parametrize("T", GOLDEN)
def test_golden_values_under_autocast(T: float) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        losses = golden_losses(GOLDEN_X.float(), GOLDEN_Y, T)
    assert all(loss.dtype == torch.float32 for loss in losses)
    assert [loss.item() for loss in losses] == pytest.approx(GOLDEN[T], abs=1e-4)


def test_golden_values_with_an_anchor_without_positive() -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    losses = (
        supcon_out(GOLDEN_X, y, 0.5),
        lacln(GOLDEN_X, y, 0.5),
        lacln(GOLDEN_X, y, 0.5, log_k_constant=True),
    )
    assert [loss.item() for loss in losses] == pytest.approx([1.01219573, 0.86251930, 1.27840761], abs=1e-8)


@pytest.mark.parametrize(("T", "literal"), [(0.1, 0.49001727), (0.5, 0.38920867)])
def test_positives_are_not_tilted_with_the_sign_of_the_printed_equations(T: float, literal: float) -> None:
    """Section 4.5, resolution 1: the last golden column is what SCL-RHE must not be."""
    reference = inner_reference(T, -0.5, 0.5, 0.05, 0.01)
    assert reference_losses(GOLDEN_X.numpy(), GOLDEN_Y.numpy(), reference) == pytest.approx(literal, abs=1e-8)
    assert abs(scl_rhe(GOLDEN_X, GOLDEN_Y, T, 0.5, 0.5, 0.05, 0.01).item() - literal) > 0.05


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("T", [0.05, 0.1, 0.5])
def test_equals_a_loop_over_anchors(seed: int, T: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "BLOCK_ELEMENTS", 40)  # several blocks, the last one smaller
    x, y = random_batch(seed)
    expected = [reference_losses(x.numpy(), y.numpy(), outer_reference(T))]
    expected += [
        reference_losses(x.numpy(), y.numpy(), inner_reference(T, *settings)) for settings in BETAS_AND_RATES
    ]
    found = [supcon_out(x, y, T), *(scl_rhe(x, y, T, *settings) for settings in BETAS_AND_RATES)]
    assert [loss.item() for loss in found] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("margin", [0.1, 0.5, 5.0])
def test_triplet_equals_a_loop_over_anchors(margin: float) -> None:
    x, y = random_batch(7, rows=20)
    expected = reference_losses(x.numpy(), y.numpy(), triplet_reference(margin))
    assert triplet_semi_hard(x, y, margin).item() == pytest.approx(expected, abs=1e-12)


LOSSES: dict[str, Loss] = {
    "supcon_out": lambda x, y: supcon_out(x, y, 0.3),
    "supcon_in": lambda x, y: supcon_in(x, y, 0.3),
    "lacln": lambda x, y: lacln(x, y, 0.3),
    "scl_rhe": lambda x, y: scl_rhe(x, y, 0.3, 0.7, 1.0, 0.05, 0.01),
    "scl_rhe, sibling views": lambda x, y: scl_rhe(x, y, 0.3, 1.0, 1.0, 0.2, 0.01, sibling_views=True),
    "triplet": lambda x, y: triplet_semi_hard(x, y, 0.3),
    "clce": lambda x, y: clce(x[:, :4], x, y, 0.9, 0.5)[0],
}
INNER = ("supcon_in", "lacln", "scl_rhe", "scl_rhe, sibling views", "triplet")


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_the_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "BLOCK_ELEMENTS", 30)
    x, y = random_batch(1, rows=9, classes=3)
    assert torch.autograd.gradcheck(lambda rows: LOSSES[name](rows, y), x.requires_grad_())


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "clce"])
def test_invariances(name: str) -> None:
    x, y = random_batch(2)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    order = torch.randperm(len(x))
    value = LOSSES[name](x, y).item()
    renamed = torch.tensor([900, -3, 17, 4])[y]
    lengths = torch.rand(len(x), 1, dtype=torch.float64) + 0.1
    for other_x, other_y in ((x[order], y[order]), (x, renamed), (x @ rotation, y), (x * lengths, y)):
        assert LOSSES[name](other_x, other_y).item() == pytest.approx(value, abs=1e-9)


def test_identities_of_the_family() -> None:
    x, y = random_batch(3)
    inner, hard = supcon_in(x, y, 0.2).item(), lacln(x, y, 0.2).item()
    assert scl_rhe(x, y, 0.2, 0, 0, 0, 0).item() == pytest.approx(inner, abs=1e-12)
    assert scl_rhe(x, y, 0.2, 0, 1, 0, 0).item() == pytest.approx(hard, abs=1e-12)
    assert lacln(x, y, 0.2, hard_negatives=False).item() == pytest.approx(inner, abs=1e-12)
    assert hard > inner
    assert supcon_out(x, y, 0.2).item() >= supcon_in(x, y, 0.2, log_k_constant=True).item()


def test_one_positive_makes_outer_and_inner_form_equal() -> None:
    x, _ = random_batch(4, rows=8)
    y = torch.arange(4).repeat(2)
    assert supcon_out(x, y, 0.1).item() == pytest.approx(supcon_in(x, y, 0.1).item(), abs=1e-12)


def test_equal_negatives_weigh_the_same() -> None:
    x = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 2]]
    y = torch.tensor([0, 0, 1, 2])
    assert lacln(x, y, 0.5).item() == pytest.approx(supcon_in(x, y, 0.5).item(), abs=1e-12)


def test_log_k_changes_the_value_by_log_k_and_no_gradient() -> None:
    gradients = []
    for constant in (False, True):
        x = GOLDEN_X.clone().requires_grad_()
        value = lacln(x, GOLDEN_Y, 0.5, log_k_constant=constant)
        value.backward()
        gradients.append(x.grad)
    assert value.item() - lacln(GOLDEN_X, GOLDEN_Y, 0.5).item() == pytest.approx(math.log(2))
    assert torch.equal(*gradients)


@pytest.mark.parametrize("beta_pos", [0.25, 0.5, 1.0, 2.0])
def test_easier_positives_weigh_no_more(beta_pos: float) -> None:
    """Section 4.5, resolution 1. With detached weights the gradient is the weight."""
    similarity = torch.tensor([[-0.5, 0.1, 0.6, 0.9]], dtype=torch.float64, requires_grad=True)
    members = torch.ones(1, 4, dtype=torch.bool)
    form = InnerForm(1.0, beta_pos=beta_pos, detach_weights=True)
    side = kernel.Side(similarity, members, torch.tensor([4.0], dtype=torch.float64))
    negatives = kernel.Side(torch.zeros_like(similarity), members, side.size)
    form.expectations(kernel.Anchors(side, negatives, torch.tensor([0]))).positive.sum().backward()
    assert similarity.grad is not None
    weights = (similarity.grad / similarity.detach().exp()).flatten()
    assert (weights.diff() < 0).all()
    assert (similarity.grad >= 0).all()


def test_detached_weights_change_the_gradient_only() -> None:
    x, y = random_batch(5)
    values, gradients = [], []
    for detach in (False, True):
        rows = x.clone().requires_grad_()
        loss = lacln(rows, y, 0.3, detach_weights=detach)
        loss.backward()
        values.append(loss.item())
        gradients.append(rows.grad)
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    assert not torch.allclose(*gradients)


def test_sibling_views_correct_the_rate_per_anchor() -> None:
    x, _ = random_batch(6, rows=8)
    pairs = torch.arange(4).repeat(2)
    assert scl_rhe(x, pairs, 0.3, 1, 1, 0.3, 0, sibling_views=True).item() == pytest.approx(
        scl_rhe(x, pairs, 0.3, 1, 1, 0, 0).item(), abs=1e-12
    )
    triples = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    assert scl_rhe(x, triples, 0.3, 1, 1, 0.3, 0, sibling_views=True).item() == pytest.approx(
        scl_rhe(x, triples, 0.3, 1, 1, 0.2, 0).item(), abs=1e-12
    )


@pytest.mark.parametrize(
    ("labels", "zero"),
    [
        pytest.param([0, 1, 2, 3], tuple(LOSSES), id="no positives"),
        pytest.param([0, 0, 0, 0], INNER, id="one class"),
        pytest.param([], tuple(LOSSES), id="empty"),
        pytest.param([3], tuple(LOSSES), id="one row"),
        pytest.param([0, 0], INNER, id="one pair"),
        pytest.param([0, 0, 1], (), id="singleton class"),
    ],
)
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "clce"])
def test_any_batch_composition(name: str, labels: list[int], zero: tuple[str, ...]) -> None:
    x = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = LOSSES[name](x, torch.tensor(labels, dtype=torch.long))
    loss.backward()
    assert x.grad is not None
    assert loss.isfinite()
    assert x.grad.isfinite().all()
    if name in zero:
        assert loss.item() == 0
        assert not x.grad.any()
    else:
        assert loss.item() > 0 or (name, labels) in (("triplet", [0, 0, 1]), ("supcon_out", [0, 0]))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "clce"])
@pytest.mark.parametrize(
    "rows", [torch.ones(6, 3), torch.zeros(6, 3), 1e20 * torch.eye(6, 3), -torch.ones(6, 3)], ids=str
)
def test_degenerate_embeddings_stay_finite(name: str, rows: Tensor) -> None:
    x = rows.clone().requires_grad_()
    loss = LOSSES[name](x, torch.tensor([0, 0, 0, 1, 1, 2]))
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("T", [0.01, 0.02])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_temperatures_and_narrow_types_do_not_overflow(T: float, dtype: torch.dtype) -> None:
    x, y = random_batch(8)
    rows = x.to(dtype).requires_grad_()
    for loss in golden_losses(rows, y, T):
        assert loss.isfinite()
        (gradient,) = torch.autograd.grad(loss, rows)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


def test_floor_and_statistics() -> None:
    """At T = 0.1 well-separated anchors have nothing left of E_N (section 8, item 5)."""
    found = contrast_statistics(GOLDEN_X, GOLDEN_Y, InnerForm(0.1, 1, 1, 0.05, 0.01))
    assert found == (6, 1.0, 2.0, 3.0, 0.0, pytest.approx(4 / 6))
    assert contrast_statistics(GOLDEN_X, torch.arange(6), InnerForm(0.1)) == (6, 0, 0, 0, 0, 0)
    # Positives that all point away are floored as soon as something is subtracted from them.
    x = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])
    assert contrast_statistics(x, torch.tensor([0, 0, 1, 1]), InnerForm(0.5, 1, 1, 0.2, 0.1))[4] == 1


def test_clce_mixes_cross_entropy_and_contrast() -> None:
    x, y = random_batch(9)
    logits = torch.randn(len(x), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    loss, parts = clce(logits, x, y, lam=0.9, T=0.5, label_smoothing=0.1)
    cross_entropy, contrast = F.cross_entropy(logits, y, label_smoothing=0.1), lacln(x, y, 0.5)
    assert loss.item() == pytest.approx(0.1 * cross_entropy.item() + 0.9 * contrast.item(), abs=1e-12)
    assert parts == {"ce": cross_entropy, "con": contrast}
    assert clce(logits, x, y, 0.0, 0.5)[0].item() == pytest.approx(F.cross_entropy(logits, y).item())
    assert clce(logits, x, y, 1.0, 0.5)[0].item() == pytest.approx(contrast.item())


def test_clce_of_one_class_still_trains_the_classifier() -> None:
    logits = torch.zeros(4, 3, requires_grad=True)
    loss, parts = clce(logits, torch.randn(4, 2), torch.ones(4, dtype=torch.long), 0.9, 0.5)
    loss.backward()
    assert parts["con"] == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_two_views_give_every_anchor_a_positive() -> None:
    x, y = two_views(torch.randn(5, 3), torch.randn(5, 3), torch.arange(5))
    assert torch.equal(y[:5], y[5:])
    assert contrast_statistics(x, y, InnerForm(0.1)).valid == 1


def test_repelling_easy_positives_is_announced() -> None:
    with pytest.warns(UserWarning, match="beta_pos is 1.5"):
        scl_rhe(GOLDEN_X, GOLDEN_Y, 0.5, 1.5, 1, 0, 0)


ROWS, LABELS = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: supcon_out(torch.randn(4), LABELS, 0.1), r"x has shape \[4\]"),
        (lambda: supcon_out(LABELS[:, None], LABELS, 0.1), "dtype torch.int64"),
        (lambda: supcon_in(ROWS, LABELS[:3], 0.1), r"y has shape \[3\]"),
        (lambda: supcon_in(ROWS, LABELS.float(), 0.1), "soft labels"),
        (lambda: supcon_in(ROWS, LABELS > 0, 0.1), "torch.bool"),
        (lambda: lacln(ROWS, LABELS, 0), "T is 0"),
        (lambda: supcon_out(ROWS, LABELS, math.inf), "T is inf"),
        (lambda: scl_rhe(ROWS, LABELS, 0.1, -1, 1, 0, 0), "beta_pos is -1"),
        (lambda: scl_rhe(ROWS, LABELS, 0.1, 1, 1, 1, 0), "eps_pos is 1"),
        (lambda: scl_rhe(ROWS, LABELS, 0.1, 1, 1, 0, math.nan), "eps_neg is nan"),
        (lambda: clce(ROWS, ROWS, LABELS, 1.5, 0.5), "lam is 1.5"),
        (lambda: clce(ROWS[:2], ROWS, LABELS, 0.5, 0.5), "logits have shape"),
        (lambda: triplet_semi_hard(ROWS, LABELS, 0), "margin is 0"),
        (lambda: two_views(ROWS, ROWS[:2], LABELS), "views of shapes"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ContrastiveError, match=message):
        call()
