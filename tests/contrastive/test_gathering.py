"""Two processes give the loss and the gradient of one, for every loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from mca_perception.contrastive import (
    clce,
    info_nce,
    lacln,
    n_pair,
    scl_rhe,
    sigmoid_loss,
    simclr,
    supcon_in,
    supcon_out,
    triplet_semi_hard,
)
from mca_perception.contrastive.gathering import gather_rows

ROWS = 6  # in all
# The first process holds one valid anchor more than the second: means must be weighted by the global count.
LABELS = torch.tensor([0, 1, 1, 0, 1, 3])
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "supcon_out": lambda x, y: supcon_out(x, y, 0.3),
    "supcon_in": lambda x, y: supcon_in(x, y, 0.3),
    "lacln": lambda x, y: lacln(x, y, 0.3),
    "scl_rhe": lambda x, y: scl_rhe(x, y, 0.3, 1, 1, 0.05, 0.01),
    "triplet": lambda x, y: triplet_semi_hard(x, y, 0.5),
    "clce": lambda x, y: clce(x[:, :4], x, y, 0.9, 0.5)[0],
    "info_nce": lambda x, y: info_nce(x[:, :4], x[:, 4:], 0.3, y),
    "decoupled": lambda x, y: info_nce(x[:, :4], x[:, 4:], 0.3, y, decouple_positive=True),
    "sigmoid": lambda x, y: sigmoid_loss(x[:, :4], x[:, 4:], 0.3, -2.0, y),
    "sigmoid, no labels": lambda x, y: sigmoid_loss(x[:, :4], x[:, 4:], 0.3, -2.0),
    "n_pair": lambda x, y: n_pair(x[:, :4], x[:, 4:], y, l2_weight=0.1),
    "simclr": lambda x, y: simclr(x[:, :4], x[:, 4:], 0.3),
    "no positives in one process": lambda x, y: supcon_out(x, y.clone().fill_(7).add_(_second_half(y)), 0.3),
    "no positives at all": lambda x, y: supcon_out(x, _all_different(y), 0.3),
}


def _second_half(y: Tensor) -> Tensor:
    """Class 7 for the first half of all rows; a class of its own for each of the others."""
    number = _all_different(y)
    return torch.where(number < ROWS // 2, 0, 1 + number)


def _all_different(y: Tensor) -> Tensor:
    first = distributed.get_rank() * len(y) if distributed.is_initialized() else 0
    return first + torch.arange(len(y))


def rows() -> Tensor:
    return torch.randn(ROWS, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def _losses_of_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name, loss_of in LOSSES.items():
        x = rows().chunk(2)[rank].clone().requires_grad_()
        loss = loss_of(x, LABELS.chunk(2)[rank].clone())
        loss.backward()
        found[name] = [loss.detach(), x.grad]
    found["gathered"] = [gather_rows(rows().chunk(2)[rank])]
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_give_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    context = multiprocessing.spawn(_losses_of_rank, (str(tmp_path),), nprocs=2, join=False)
    assert context is not None
    # Each call waits for one process to end.
    assert any(context.join(timeout=60) for _ in range(2)), "the processes did not finish"
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(of_rank["gathered"][0], rows()) for of_rank in found)
    for name, loss_of in LOSSES.items():
        x = rows().requires_grad_()
        expected = loss_of(x, LABELS)
        expected.backward()
        losses, gradients = zip(*(of_rank[name] for of_rank in found), strict=True)
        assert torch.stack(losses).mean().item() == pytest.approx(expected.item(), abs=1e-12), name
        # Each process minimises its own loss; averaged over two processes, the gradients are those of one.
        assert x.grad is not None
        assert torch.allclose(torch.cat(gradients) / 2, x.grad, atol=1e-12), name


def test_one_process_keeps_its_rows() -> None:
    x = rows()
    assert gather_rows(x) is x
