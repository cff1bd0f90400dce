"""Symmetric InfoNCE against a float64 NumPy reference, alone and over two processes; duplicates do not repel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, multiprocessing
from torch.nn import functional as F

from mca_perception.contrastive.info_nce import MAX_SCALE, InfoNCE, gather_rows, info_nce, logit_factor

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
        torch.tensor(scale, dtype=torch.float64),
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
    assert torch.autograd.gradcheck(lambda q, r, s: info_nce(q, r, s), (queries, references, scale))


def test_duplicates_of_a_product_do_not_repel() -> None:
    queries = torch.randn(2, 4, requires_grad=True)
    references = torch.randn(2, 4)
    loss = InfoNCE()(F.normalize(queries, dim=1), F.normalize(references, dim=1), torch.tensor([7, 7]))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert queries.grad is not None
    assert queries.grad.abs().max() < 1e-6


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    queries, references = (torch.tensor(rows) for rows in unit_rows(4, 2, 6, 8))
    return queries, references, torch.tensor([0, 1, 2, 0, 3, 4])


def _loss_of_rank(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    queries, references, labels = (tensor.chunk(2)[rank].clone() for tensor in _batch())
    queries.requires_grad_()
    references.requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64)
    loss = info_nce(queries, references, scale, labels)
    loss.backward()
    everything = gather_rows(queries.detach())
    torch.save([loss.detach(), queries.grad, references.grad, everything], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_give_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    context = multiprocessing.spawn(_loss_of_rank, (str(tmp_path),), nprocs=2, join=False)
    assert context is not None
    # Each call waits for one process to end.
    assert any(context.join(timeout=60) for _ in range(2)), "the processes did not finish"
    losses, of_queries, of_references, gathered = zip(
        *(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)), strict=True
    )
    queries, references, labels = _batch()
    queries.requires_grad_()
    references.requires_grad_()
    expected = info_nce(queries, references, torch.tensor(5.0, dtype=torch.float64), labels)
    expected.backward()
    assert torch.stack(losses).mean().item() == pytest.approx(expected.item(), abs=1e-12)
    # Each process minimises its own mean; averaged over two processes, the gradients are those of one.
    for parts, whole in ((of_queries, queries.grad), (of_references, references.grad)):
        assert whole is not None
        assert torch.allclose(torch.cat(parts) / 2, whole, atol=1e-12)
    assert all(torch.equal(rows, queries.detach()) for rows in gathered)
