"""Rows of all processes of a distributed run, with gradients; plain tensors when there is only one process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, differentiable; the input itself in a single process.

    Args:
        rows: ``[B, ...]``, the same shape in every process.
    """
    if not _is_distributed():
        return rows
    gathered: Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def first_row(count: int) -> int:
    """Where this process's ``count`` rows begin among those of :func:`gather_rows`."""
    return distributed.get_rank() * count if _is_distributed() else 0


def process_count() -> int:
    """How many processes take part in the run."""
    return distributed.get_world_size() if _is_distributed() else 1


class _GatherRows(torch.autograd.Function):
    """Concatenate the rows of all processes; a row's gradient is the sum of what all processes hold for it."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        context.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        first = distributed.get_rank() * context.count
        return total[first : first + context.count]


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
