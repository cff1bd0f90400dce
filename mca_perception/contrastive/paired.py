"""Losses on pairs of embeddings: InfoNCE (CLIP), decoupled InfoNCE, sigmoid (SigLIP), N-pair and SimCLR.

Row i of one set matches row i of the other. Rows with equal labels never repel each other: two photos of one
product, or two images with the same text. In a distributed run the contrasts are the rows of all processes, and
gradients flow back to the process that a row came from. The mean of the processes' losses is the loss of one process
with the whole batch; gradients must be averaged over processes, as DistributedDataParallel does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.contrastive.gathering import first_row, gather_rows
from mca_perception.contrastive.kernel import NORM_FLOOR, at_least_float32, check_temperature
from mca_perception.contrastive.supervised import supcon_out, two_views
from mca_perception.errors import ContrastiveError

INITIAL_TEMPERATURE = 0.07
MAX_SCALE = 100.0
INITIAL_SIGMOID_SCALE = 10.0
INITIAL_SIGMOID_BIAS = -10.0


class InfoNCE(nn.Module):
    """Symmetric InfoNCE with a learned temperature (CLIP's initial value and bound)."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(initial_logit_scale())

    def forward(self, queries: Tensor, references: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean loss of both directions; arguments as in :func:`info_nce`."""
        return info_nce(queries, references, 1 / logit_factor(self.logit_scale), labels)


class SigmoidLoss(nn.Module):
    """Sigmoid loss with a learned scale and bias (SigLIP's initial values)."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SIGMOID_SCALE)))
        self.bias = nn.Parameter(torch.tensor(INITIAL_SIGMOID_BIAS))

    def forward(self, queries: Tensor, references: Tensor, labels: Tensor | None = None) -> Tensor:
        """Loss over all pairs; arguments as in :func:`sigmoid_loss`."""
        return sigmoid_loss(queries, references, 1 / logit_factor(self.logit_scale), self.bias, labels)


def initial_logit_scale() -> Tensor:
    """``ln(1 / 0.07)``, the start of a learned logit scale."""
    return torch.tensor(math.log(1 / INITIAL_TEMPERATURE))


def logit_factor(logit_scale: Tensor) -> Tensor:
    """``exp(logit_scale)``, bounded by 100 as in CLIP."""
    return logit_scale.exp().clamp(max=MAX_SCALE)


def info_nce(
    queries: Tensor,
    references: Tensor,
    T: float | Tensor,
    labels: Tensor | None = None,
    *,
    decouple_positive: bool = False,
) -> Tensor:
    """Mean of both directions' cross-entropy (specification of the framework, section 6.1).

    Args:
        queries: ``[B, E]`` of any norm, normalised inside. The same B in every process.
        references: ``[B, E]``, likewise.
        T: temperature; a tensor if it is learned.
        labels: ``[B]`` int64, with one meaning in all processes; None when all pairs differ.
        decouple_positive: leave the matching pair out of the denominator, which keeps the gradient alive in small
            batches (decoupled contrastive learning; specification of related methods, section 4.2, entry 1). A batch
            without negatives then gives 0.

    Raises:
        ContrastiveError: shapes or the temperature do not fit; so for all losses here.
    """
    _check_pairs(queries, references, labels)
    check_temperature(T)
    with torch.autocast(queries.device.type, enabled=False):
        queries, references = _unit(queries), _unit(references)
        target, same = _matches(queries, labels)
        if decouple_positive and bool(same.all()):
            return _zero(queries) + _zero(references)
        directions = ((queries, gather_rows(references)), (references, gather_rows(queries)))
        losses = [_cross_entropy((a / T) @ b.T, target, same, decouple_positive) for a, b in directions]
        return (losses[0] + losses[1]) / 2


def sigmoid_loss(
    queries: Tensor,
    references: Tensor,
    T: float | Tensor,
    bias: float | Tensor,
    labels: Tensor | None = None,
) -> Tensor:
    """``-(1/B) sum_ij log sigmoid(z_ij (s_ij + bias))``, z = 1 for matching pairs, else -1 (related methods, 4.3).

    Every pair is judged by itself, so several matches per row are natural: equal labels count as a match.

    Args:
        queries: ``[B, E]`` of any norm, normalised inside. The same B in every process.
        references: ``[B, E]``, likewise.
        T: temperature; a tensor if it is learned.
        bias: added to all logits; a tensor if it is learned. A start near -10 suits the many non-matching pairs.
        labels: ``[B]`` int64, with one meaning in all processes; None when all pairs differ.
    """
    _check_pairs(queries, references, labels)
    check_temperature(T)
    with torch.autocast(queries.device.type, enabled=False):
        queries, references = _unit(queries), _unit(references)
        _, same = _matches(queries, labels)
        logits = (queries / T) @ gather_rows(references).T + bias
        return -F.logsigmoid(torch.where(same, logits, -logits)).sum() / max(1, len(queries))


def n_pair(
    anchors: Tensor, positives: Tensor, labels: Tensor | None = None, l2_weight: float = 0.0
) -> Tensor:
    """N-pair loss: each anchor against the positives of all others, on raw dot products.

    Args:
        anchors: ``[B, E]``, not normalised. The same B in every process.
        positives: ``[B, E]``, likewise.
        labels: ``[B]`` int64, with one meaning in all processes; None when all pairs differ.
        l2_weight: weight of the mean squared norm, which keeps the embeddings from growing.
    """
    _check_pairs(anchors, positives, labels)
    with torch.autocast(anchors.device.type, enabled=False):
        anchors, positives = at_least_float32(anchors), at_least_float32(positives)
        target, same = _matches(anchors, labels)
        loss = _cross_entropy(anchors @ gather_rows(positives).T, target, same, decouple_positive=False)
        norms = anchors.square().sum() + positives.square().sum()
        return loss + l2_weight * norms / max(1, 2 * len(anchors))


def simclr(first: Tensor, second: Tensor, T: float) -> Tensor:
    """NT-Xent: of all other views in the batch, find the second view of the same image.

    Args:
        first: ``[B, E]`` embeddings of the first views, normalised inside. The same B in every process.
        second: ``[B, E]`` embeddings of the second views.
        T: temperature.
    """
    images = first_row(len(first)) + torch.arange(len(first), device=first.device)
    return supcon_out(*two_views(first, second, images), T)


def _check_pairs(queries: Tensor, references: Tensor, labels: Tensor | None) -> None:
    if queries.ndim != 2 or queries.shape != references.shape:
        raise ContrastiveError(
            f"sets of shapes {list(queries.shape)} and {list(references.shape)} are no pairs; pass two of [B, E]"
        )
    if labels is not None and (labels.shape != queries.shape[:1] or labels.is_floating_point()):
        raise ContrastiveError(
            f"labels have shape {list(labels.shape)} and dtype {labels.dtype} for {len(queries)} pairs; pass one "
            "integer per pair"
        )


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(at_least_float32(rows), dim=1, eps=NORM_FLOOR)


def _matches(rows: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Column of each row's own match ``[B]``, and which columns must not repel it ``[B, B of all processes]``."""
    if labels is None:
        labels = first_row(len(rows)) + torch.arange(len(rows), device=rows.device)
    target = first_row(len(rows)) + torch.arange(len(rows), device=rows.device)
    return target, labels[:, None] == gather_rows(labels)


def _cross_entropy(logits: Tensor, target: Tensor, same: Tensor, decouple_positive: bool) -> Tensor:
    """Mean of ``log sum exp`` over the contrasts minus the logit of the match; 0 for an empty batch."""
    if not len(logits):
        return _zero(logits)
    if decouple_positive:
        positive = logits.gather(1, target[:, None]).squeeze(1)
        return (torch.where(same, -torch.inf, logits).logsumexp(1) - positive).mean()
    others = same.scatter(1, target[:, None], False)
    return F.cross_entropy(logits.masked_fill(others, -torch.inf), target)


def _zero(rows: Tensor) -> Tensor:
    """0 with a graph, whatever the values."""
    return rows.flatten()[:0].sum()
