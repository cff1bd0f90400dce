"""Losses on pairs against float64 NumPy loops; duplicates do not repel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mca_perception.contrastive import SigmoidLoss, n_pair, sigmoid_loss, simclr
from mca_perception.contrastive.paired import MAX_SCALE, InfoNCE, info_nce, logit_factor
from mca_perception.errors import ContrastiveError

Array = NDArray[np.float64]


def unit_rows(seed: int, *shape: int) -> Array:
    rows = np.random.default_rng(seed).normal(size=shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def reference_loss(queries: Array, references: Array, labels: list[int], scale: float) -> float:
    """Specification of the framework, section 6.1, with repeated labels taken out of the negatives."""
    total = 0.0
    for similarity in (queries @ references.T, references @ queries.T):
        for i, row in enumerate(similarity):
            kept = [j for j in range(len(row)) if j == i or labels[j] != labels[i]]
            logits = scale * row[kept]
            total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - scale * row[i]
    return total / (2 * len(queries))


@pytest.mark.parametrize("labels", [None, [0, 1, 2, 3, 4], [0, 1, 0, 1, 2], [0, 0, 0, 0, 0]])
@pytest.mark.parametrize("scale", [1.0, 1 / 0.07, 100.0])
def test_equals_the_numpy_reference(labels: list[int] | None, scale: float) -> None:
    queries, references = unit_rows(1, 2, 5, 8)
    found = info_nce(
        torch.tensor(queries),
        torch.tensor(references),
        1 / torch.tensor(scale, dtype=torch.float64),
        None if labels is None else torch.tensor(labels),
    )
    expected = reference_loss(queries, references, labels or list(range(5)), scale)
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_module_starts_at_clips_temperature() -> None:
    queries, references = unit_rows(2, 2, 6, 8)
    found = InfoNCE()(torch.tensor(queries).float(), torch.tensor(references).float())
    assert found.item() == pytest.approx(
        reference_loss(queries, references, list(range(6)), 1 / 0.07), abs=1e-5
    )


def test_scale_is_bounded() -> None:
    assert logit_factor(torch.tensor(20.0)).item() == MAX_SCALE


def test_gradient_is_that_of_the_function() -> None:
    queries, references = (torch.tensor(rows, requires_grad=True) for rows in unit_rows(3, 2, 3, 4))
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, r, s: info_nce(q, r, 1 / s), (queries, references, scale))


def test_duplicates_of_a_product_do_not_repel() -> None:
    queries = torch.randn(2, 4, requires_grad=True)
    references = torch.randn(2, 4)
    loss = InfoNCE()(F.normalize(queries, dim=1), F.normalize(references, dim=1), torch.tensor([7, 7]))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert queries.grad is not None
    assert queries.grad.abs().max() < 1e-6


def as_labels(labels: list[int] | None) -> Tensor | None:
    return None if labels is None else torch.tensor(labels)


LABELS = [None, [0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]


def test_rows_are_normalised_inside() -> None:
    queries, references = torch.randn(2, 5, 4)
    assert info_nce(3 * queries, references, 0.1).item() == pytest.approx(
        info_nce(queries, 0.1 * references, 0.1).item(), rel=1e-5
    )


@pytest.mark.parametrize("labels", LABELS)
def test_decoupled_equals_a_loop(labels: list[int] | None) -> None:
    queries, references = unit_rows(5, 2, 5, 8)
    names = labels or list(range(5))
    values = []
    for similarity in (queries @ references.T / 0.2, references @ queries.T / 0.2):
        for i, row in enumerate(similarity):
            negatives = [row[j] for j in range(5) if names[j] != names[i]]
            values.append(np.log(np.exp(negatives).sum()) - row[i])
    found = info_nce(
        torch.tensor(queries), torch.tensor(references), 0.2, as_labels(labels), decouple_positive=True
    )
    assert found.item() == pytest.approx(np.mean(values), abs=1e-12)


@pytest.mark.parametrize("labels", LABELS)
def test_sigmoid_equals_a_loop(labels: list[int] | None) -> None:
    queries, references = unit_rows(6, 2, 5, 8)
    names = labels or list(range(5))
    total = 0.0
    for i in range(5):
        for j in range(5):
            sign = 1 if names[i] == names[j] else -1
            total += np.log1p(np.exp(-sign * (queries[i] @ references[j] / 0.1 - 3)))
    found = sigmoid_loss(torch.tensor(queries), torch.tensor(references), 0.1, -3, as_labels(labels))
    assert found.item() == pytest.approx(total / 5, abs=1e-12)
    module = SigmoidLoss()(torch.tensor(queries), torch.tensor(references))
    assert module.item() == pytest.approx(
        sigmoid_loss(torch.tensor(queries), torch.tensor(references), 0.1, -10).item(), abs=1e-5
    )


@pytest.mark.parametrize("labels", LABELS)
def test_n_pair_equals_a_loop(labels: list[int] | None) -> None:
    anchors, positives = 2 * unit_rows(7, 2, 5, 8)
    names = labels or list(range(5))
    values = []
    for i, row in enumerate(anchors @ positives.T):
        values.append(np.log1p(sum(np.exp(row[j] - row[i]) for j in range(5) if names[j] != names[i])))
    found = n_pair(torch.tensor(anchors), torch.tensor(positives), as_labels(labels), l2_weight=0.5)
    assert found.item() == pytest.approx(np.mean(values) + 0.5 * 4, abs=1e-12)


def test_simclr_equals_a_loop() -> None:
    first, second = unit_rows(8, 2, 4, 6)
    rows = np.concatenate([first, second])
    values = []
    for i in range(8):
        logits = rows @ rows[i] / 0.3
        values.append(np.log(np.exp(np.delete(logits, i)).sum()) - logits[(i + 4) % 8])
    assert simclr(torch.tensor(first), torch.tensor(second), 0.3).item() == pytest.approx(np.mean(values))


PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "info_nce": lambda a, b: info_nce(a, b, 0.2),
    "decoupled": lambda a, b: info_nce(a, b, 0.2, decouple_positive=True),
    "sigmoid": lambda a, b: sigmoid_loss(a, b, 0.2, -1),
    "n_pair": lambda a, b: n_pair(a, b, l2_weight=0.1),
    "simclr": lambda a, b: simclr(a, b, 0.2),
}


@pytest.mark.parametrize("name", PAIRED)
def test_gradients_are_those_of_the_functions(name: str) -> None:
    rows = tuple(torch.tensor(rows, requires_grad=True) for rows in unit_rows(9, 2, 3, 4))
    assert torch.autograd.gradcheck(PAIRED[name], rows)


@pytest.mark.parametrize("name", PAIRED)
def test_autocast_does_not_narrow(name: str) -> None:
    first, second = torch.tensor(unit_rows(10, 2, 6, 8)).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = PAIRED[name](first, second)
    assert found.item() == pytest.approx(PAIRED[name](first, second).item(), abs=1e-6)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("name", PAIRED)
def test_batches_without_negatives_have_a_finite_gradient(name: str, count: int) -> None:
    rows = torch.randn(2, count, 4, requires_grad=True)
    loss = PAIRED[name](rows[0], rows[1])
    loss.backward()
    assert loss.isfinite()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()
    if name == "decoupled" or not count:
        assert loss.item() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce(torch.ones(2, 3), torch.ones(3, 3), 0.1), "are no pairs"),
        (lambda: info_nce(torch.ones(2), torch.ones(2), 0.1), "are no pairs"),
        (lambda: sigmoid_loss(torch.ones(2, 3), torch.ones(2, 3), -1, 0), "T is -1"),
        (
            lambda: n_pair(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3).long()),
            r"labels have shape \[3\]",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ContrastiveError, match=message):
        call()
