"""Cached gradients are those of the plain step, with dropout and with parameters in the loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from mca_perception.contrastive import InfoNCE, cached_backward, supcon_out
from mca_perception.errors import ContrastiveError


class TwoTowers(nn.Module):
    """Two encoders with dropout, and a loss with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 4)) for _ in range(2)
        )
        self.loss = InfoNCE()
        self.double()

    def encode(self, chunk: Tensor) -> tuple[Tensor, ...]:
        return tuple(tower(chunk) for tower in self.towers)

    def gradients(self) -> list[Tensor]:
        found = [parameter.grad.clone() for parameter in self.parameters() if parameter.grad is not None]
        self.zero_grad()
        return found


@pytest.mark.parametrize("sizes", [[12], [6, 6], [5, 5, 2], [1] * 12])
def test_equals_the_plain_step_with_dropout(sizes: list[int]) -> None:
    model, items = TwoTowers(), torch.randn(12, 6, dtype=torch.float64)
    chunks = items.split(sizes)
    torch.manual_seed(2)
    parts = [model.encode(chunk) for chunk in chunks]  # one graph for all, the same order of random numbers
    plain = model.loss(*(torch.cat(column) for column in zip(*parts, strict=True)))
    plain.backward()
    after_plain, expected = torch.get_rng_state(), model.gradients()
    torch.manual_seed(2)
    cached = cached_backward(model.encode, chunks, model.loss)
    assert cached.item() == pytest.approx(plain.item(), abs=1e-12)
    assert not cached.requires_grad
    found = model.gradients()
    assert len(found) == len(expected) == len(list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), after_plain), "a replay must not disturb later random numbers"


def test_differs_from_accumulating_small_batches() -> None:
    model, items = TwoTowers().eval(), torch.randn(8, 6, dtype=torch.float64)
    cached_backward(model.encode, items.split(2), model.loss)
    cached = model.gradients()
    for chunk in items.split(2):
        (model.loss(*model.encode(chunk)) / 4).backward()
    assert not any(torch.allclose(a, b) for a, b in zip(cached, model.gradients(), strict=True))


def test_frozen_tower_and_labels_in_the_loss() -> None:
    model, items, labels = TwoTowers().eval(), torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3
    model.towers[1].requires_grad_(False)

    def loss(trained: Tensor, frozen: Tensor) -> Tensor:
        return supcon_out(trained + frozen, labels, 0.2)

    cached_backward(model.encode, items.split(3), loss)
    cached = model.gradients()
    loss(*model.encode(items)).backward()
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(cached, model.gradients(), strict=True))


def test_processes_exchange_gradients_with_the_last_chunk_only() -> None:
    entered = []

    @contextmanager
    def no_sync() -> Iterator[None]:
        entered.append(True)
        yield

    model, items = TwoTowers(), torch.randn(9, 6, dtype=torch.float64)
    cached_backward(model.encode, items.split(3), model.loss, no_sync=no_sync)
    assert len(entered) == 2


def test_no_graph_is_kept_while_encoding() -> None:
    model, items, graphs = TwoTowers(), torch.randn(6, 6, dtype=torch.float64), []

    def encode(chunk: Tensor) -> tuple[Tensor, ...]:
        rows = model.encode(chunk)
        graphs.append(rows[0].requires_grad)
        return rows

    cached_backward(encode, items.split(2), model.loss)
    assert graphs == [False] * 3 + [True] * 3


def test_bad_input_is_named() -> None:
    model, items = TwoTowers(), torch.randn(4, 6, dtype=torch.float64)
    with pytest.raises(ContrastiveError, match="no chunks"):
        cached_backward(model.encode, [], model.loss)
    with pytest.raises(ContrastiveError, match="no gradient"):
        cached_backward(model.encode, items.split(2), lambda a, b: a.detach().sum())
