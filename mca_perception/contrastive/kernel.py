"""One kernel for losses over anchors: unit rows, masks, blocks of bounded memory, and the mean over valid anchors.

Notation of the specification of the contrastive methods, section 1.1: ``s_ij = <x_i, x_j> / T``; P(i) are the other
rows of anchor i's class, K_i their number; N(i) the rows of other classes, N_i their number. Anchors are in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mca_perception.contrastive.gathering import first_row, gather_rows, process_count
from mca_perception.errors import ContrastiveError

# Similarities held at once. Blocks that stay in the processor's cache are also the fastest ones.
BLOCK_ELEMENTS = 2**20
NORM_FLOOR = 1e-12


class Side(NamedTuple):
    """The positives, or the negatives, of m anchors among L candidate columns.

    Attributes:
        similarity: ``[m, L]`` float32 or float64, ``s_ij``, also where the column is not a member.
        members: ``[m, L]`` bool.
        size: ``[m]`` members per anchor, in the dtype of the similarities.
    """

    similarity: Tensor
    members: Tensor
    size: Tensor


class Anchors(NamedTuple):
    """Some anchors against all rows; m anchors, M rows of all processes.

    Attributes:
        positives: P(i), in as many columns as the largest class has rows: far fewer than M in most batches.
        negatives: N(i), in all M columns.
        itself: ``[m]`` int64, each anchor's own column of the M.
    """

    positives: Side
    negatives: Side
    itself: Tensor


class Batch(NamedTuple):
    """Unit rows of this process and of all processes, and which of them can be anchors.

    Attributes:
        rows: ``[B, D]`` unit rows of this process.
        contrasts: ``[M, D]`` unit rows of all processes.
        class_of: ``[M]`` int64, index of the row's class in ``class_size`` and ``class_start``.
        class_size: ``[C]`` int64, rows per class.
        class_start: ``[C]`` int64, where the class begins in ``by_class``.
        by_class: ``[M]`` int64, columns of ``contrasts`` ordered by class.
        anchors: ``[m]`` int64, the valid anchors of this process as columns of ``contrasts``.
        anchor_count: scalar int64 tensor, the valid anchors of all processes.
    """

    rows: Tensor
    contrasts: Tensor
    class_of: Tensor
    class_size: Tensor
    class_start: Tensor
    by_class: Tensor
    anchors: Tensor
    anchor_count: Tensor


def mean_over_anchors(
    x: Tensor, y: Tensor, T: float, loss: Callable[[Anchors], Tensor], *, needs_negatives: bool
) -> Tensor:
    """Mean of a per-anchor loss over the valid anchors of all processes; 0 with a graph when there is none.

    Computed in at least float32 whatever the autocast, in blocks of anchors whose gradient is taken at once: beside its
    input and that gradient the memory is bounded, and the loss can be differentiated once.

    In a distributed run the anchors are the rows of this process and the contrasts those of all. The mean of the
    processes' losses is the loss of one process with all rows; gradients must be averaged over processes, as
    DistributedDataParallel does (specification of the contrastive methods, section 8, item 7).

    Args:
        x: ``[M, D]`` embeddings of any norm, M the same in all processes.
        y: ``[M]`` integer class ids, with one meaning in all processes.
        T: temperature, above 0.
        loss: from a block of anchors to ``[m]`` losses.
        needs_negatives: anchors without a negative are not valid; those without a positive never are.

    Raises:
        ContrastiveError: shapes, dtypes or the temperature do not fit.
    """
    check_temperature(T)
    with torch.autocast(x.device.type, enabled=False):
        batch = prepare(x, y, needs_negatives=needs_negatives)

        def total_of(rows: Tensor, contrasts: Tensor, columns: Tensor) -> Tensor:
            return loss(anchors_at(batch, rows, contrasts, columns, T)).sum()

        local = batch.anchors - first_row(len(batch.rows))
        total: Tensor = _SumOverBlocks.apply(  # type: ignore[no-untyped-call]
            batch.rows[local], batch.contrasts, batch.anchors, total_of
        )
        return total * process_count() / batch.anchor_count.clamp(min=1)


def prepare(x: Tensor, y: Tensor, *, needs_negatives: bool) -> Batch:
    """Normalise, gather and count; arguments and errors as in :func:`mean_over_anchors`."""
    if x.ndim != 2 or not x.is_floating_point():
        raise ContrastiveError(
            f"x has shape {list(x.shape)} and dtype {x.dtype}; pass floating [M, D] embeddings"
        )
    if y.shape != x.shape[:1] or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ContrastiveError(
            f"y has shape {list(y.shape)} and dtype {y.dtype} for {len(x)} embeddings; pass one integer class id per "
            "row (soft labels belong to the cross-entropy only)"
        )
    rows = F.normalize(at_least_float32(x), dim=1, eps=NORM_FLOOR)
    contrasts, labels = gather_rows(rows), gather_rows(y)
    _, class_of, class_size = torch.unique(labels, return_inverse=True, return_counts=True)
    valid = class_size[class_of] > 1
    if needs_negatives:
        valid &= class_size[class_of] < len(labels)
    first = first_row(len(rows))
    anchors = first + valid[first : first + len(rows)].nonzero().squeeze(1)
    class_start = class_size.cumsum(0) - class_size
    return Batch(
        rows,
        contrasts,
        class_of,
        class_size,
        class_start,
        class_of.argsort(stable=True),
        anchors,
        valid.sum(),
    )


def anchors_at(batch: Batch, rows: Tensor, contrasts: Tensor, columns: Tensor, T: float) -> Anchors:
    """Similarities and masks of the anchors in ``columns`` ``[m]``, whose unit rows are ``rows`` ``[m, D]``."""
    similarity = (rows / T) @ contrasts.T
    own_class = batch.class_of[columns, None]
    size = batch.class_size[own_class]
    offset = torch.arange(int(batch.class_size.max()), device=rows.device)
    # Smaller classes run over into the next one, whose rows are not members.
    peers = batch.by_class[(batch.class_start[own_class] + offset).clamp(max=len(contrasts) - 1)]
    positives = (offset < size) & (peers != columns[:, None])
    size = size.squeeze(1).to(rows.dtype)
    return Anchors(
        Side(similarity.gather(1, peers), positives, size - 1),
        Side(similarity, own_class != batch.class_of, len(contrasts) - size),
        columns,
    )


def blocks(count: int, width: int) -> Iterator[slice]:
    """Split anchors so that a block against ``width`` rows has about :data:`BLOCK_ELEMENTS` similarities."""
    step = max(1, BLOCK_ELEMENTS // max(1, width))
    return (slice(start, start + step) for start in range(0, count, step))


def check_temperature(T: float | Tensor) -> None:
    """Refuse a temperature that is not a positive number; a learned one is trusted.

    Raises:
        ContrastiveError: as above.
    """
    if not isinstance(T, Tensor) and not 0 < T < float("inf"):
        raise ContrastiveError(f"T is {T}; the temperature must be a number above 0, usually 0.05 to 0.5")


def at_least_float32(rows: Tensor) -> Tensor:
    """Float32 for narrower types; float64 stays."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


class _SumOverBlocks(torch.autograd.Function):
    """Sum a loss over blocks of anchors, taking each block's gradient at once, so that no block's graph outlives it."""

    @staticmethod
    def forward(
        context: Any,
        rows: Tensor,
        contrasts: Tensor,
        columns: Tensor,
        total_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        differentiate = any(context.needs_input_grad[:2])
        total = rows.new_zeros(())
        of_rows, of_contrasts = [rows[:0]], torch.zeros_like(contrasts)
        for part in blocks(len(rows), len(contrasts)):
            with torch.set_grad_enabled(differentiate):
                anchors = rows[part].detach().requires_grad_(differentiate)
                others = contrasts.detach().requires_grad_(differentiate)
                value = total_of(anchors, others, columns[part])
            if differentiate:
                of_anchors, of_others = torch.autograd.grad(value, (anchors, others))
                of_rows.append(of_anchors)
                of_contrasts += of_others
            total += value.detach()
        context.save_for_backward(torch.cat(of_rows), of_contrasts)
        return total

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_rows, of_contrasts = context.saved_tensors
        return gradient * of_rows, gradient * of_contrasts, None, None
