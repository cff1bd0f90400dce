"""Symmetric InfoNCE between two sets of embeddings, over all processes of a distributed run."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

INITIAL_TEMPERATURE = 0.07
MAX_SCALE = 100.0


class InfoNCE(nn.Module):
    """Symmetric InfoNCE with a learned temperature (CLIP's initial value and bound)."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(initial_logit_scale())

    def forward(self, queries: Tensor, references: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean loss of both directions; arguments as in :func:`info_nce`."""
        return info_nce(queries, references, logit_factor(self.logit_scale), labels)


def initial_logit_scale() -> Tensor:
    """``ln(1 / 0.07)``, the start of a learned logit scale."""
    return torch.tensor(math.log(1 / INITIAL_TEMPERATURE))


def logit_factor(logit_scale: Tensor) -> Tensor:
    """``exp(logit_scale)``, bounded by 100 as in CLIP."""
    return logit_scale.exp().clamp(max=MAX_SCALE)


def info_nce(queries: Tensor, references: Tensor, scale: Tensor, labels: Tensor | None = None) -> Tensor:
    """Mean of both directions' cross-entropy (specification of the framework, section 6.1).

    Rows with the same label as a pair, but not the pair itself, are taken out of its negatives: two photos of one
    product, or two images with the same text, must not repel each other.

    In a distributed run the negatives are the rows of all processes, and gradients flow back to the process that a row
    came from. The mean of the processes' losses is the loss of one process with the whole batch; gradients must be
    averaged over processes, as DistributedDataParallel does.

    Args:
        queries: ``[B, E]`` unit length; row i matches row i of ``references``. The same B in every process.
        references: ``[B, E]`` unit length.
        scale: factor on the cosine similarities.
        labels: ``[B]`` int64, with one meaning in all processes; None when all pairs differ.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    queries, references = queries.to(dtype), references.to(dtype)
    all_queries, all_references = gather_rows(queries), gather_rows(references)
    first = distributed.get_rank() * len(queries) if _is_distributed() else 0
    target = first + torch.arange(len(queries), device=queries.device)
    forward = scale * queries @ all_references.T
    backward = scale * references @ all_queries.T
    if labels is not None:
        same = labels[:, None] == gather_rows(labels)[None, :]
        same[torch.arange(len(same), device=same.device), target] = False
        forward, backward = forward.masked_fill(same, -torch.inf), backward.masked_fill(same, -torch.inf)
    return 0.5 * (F.cross_entropy(forward, target) + F.cross_entropy(backward, target))


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, differentiable; the input itself in a single process."""
    if not _is_distributed():
        return rows
    gathered: Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


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
