"""Label-aware contrastive losses: SupCon (LaCViT), LACLN (CLCE), SCL-RHE, and the semi-hard triplet loss.

All take embeddings of any norm and class ids, normalise inside, and give the mean over valid anchors of all processes:
:func:`~mca_perception.contrastive.kernel.mean_over_anchors`. Signatures: specification of the contrastive methods,
section 1.4; there ``T`` is the temperature and ``lam`` the weight lambda.
"""

from __future__ import annotations

import warnings
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mca_perception.contrastive.inner_form import InnerForm
from mca_perception.contrastive.kernel import Anchors, at_least_float32, mean_over_anchors
from mca_perception.errors import ContrastiveError


def supcon_out(x: Tensor, y: Tensor, T: float) -> Tensor:
    """SupCon, positives averaged outside the logarithm (Eqs. 5.1 and 5.8; section 1.2, ``L_out``).

    A batch of one class is valid: its positives compete with each other.

    Args:
        x: ``[M, D]`` embeddings, normalised inside.
        y: ``[M]`` integer class ids.
        T: temperature.

    Raises:
        ContrastiveError: shapes, dtypes or the temperature do not fit; so for all losses here.
    """
    return mean_over_anchors(x, y, T, _outer, needs_negatives=False)


def lacvit(x: Tensor, y: Tensor, T: float = 0.1) -> Tensor:
    """LaCViT's first stage: :func:`supcon_out` on projected embeddings at T = 0.1 (section 2.3)."""
    return supcon_out(x, y, T)


def supcon_in(x: Tensor, y: Tensor, T: float, log_k_constant: bool = False) -> Tensor:
    """SupCon, positives summed inside the logarithm (Eqs. 5.7 and 5.9; section 1.2, ``L_in``).

    Args:
        x: ``[M, D]`` embeddings, normalised inside.
        y: ``[M]`` integer class ids.
        T: temperature.
        log_k_constant: add ``log K_i``, as the equations literally do; the gradient is the same.
    """
    return mean_over_anchors(x, y, T, InnerForm(T, log_k_constant=log_k_constant), needs_negatives=True)


def lacln(
    x: Tensor,
    y: Tensor,
    T: float,
    hard_negatives: bool = True,
    detach_weights: bool = False,
    log_k_constant: bool = False,
) -> Tensor:
    """Contrastive term of CLCE: negatives weighted by their relative similarity to the anchor (Eq. 5.4).

    Args:
        x: ``[M, D]`` encoder outputs, normalised inside.
        y: ``[M]`` integer class ids.
        T: temperature.
        hard_negatives: weight the negatives; without, it is :func:`supcon_in`.
        detach_weights: no gradient through the weights.
        log_k_constant: add ``log K_i``, as the equation literally does.
    """
    form = InnerForm(
        T,
        beta_neg=1.0 if hard_negatives else 0.0,
        detach_weights=detach_weights,
        log_k_constant=log_k_constant,
    )
    return mean_over_anchors(x, y, T, form, needs_negatives=True)


def clce(
    logits: Tensor,
    x: Tensor,
    y: Tensor,
    lam: float,
    T: float,
    *,
    hard_negatives: bool = True,
    detach_weights: bool = False,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy and :func:`lacln`, mixed (Eq. 5.2; published setting ``lam`` = 0.9, ``T`` = 0.5).

    Args:
        logits: ``[M, C]`` of the classifier.
        x: ``[M, D]`` encoder outputs, normalised inside.
        y: ``[M]`` int64 class ids in ``0 .. C-1``.
        lam: weight of the contrastive term, 0 to 1.
        T: temperature of the contrastive term.
        hard_negatives: as in :func:`lacln`.
        detach_weights: as in :func:`lacln`.
        label_smoothing: of the cross-entropy alone.

    Returns:
        The loss, and its detached parts ``ce`` and ``con``.
    """
    if not 0 <= lam <= 1:
        raise ContrastiveError(f"lam is {lam}; the weight of the contrastive term must be between 0 and 1")
    if logits.ndim != 2 or len(logits) != len(y):
        raise ContrastiveError(
            f"logits have shape {list(logits.shape)} for {len(y)} labels; pass [M, C], one row each"
        )
    contrast = lacln(x, y, T, hard_negatives, detach_weights)
    with torch.autocast(logits.device.type, enabled=False):
        cross_entropy = F.cross_entropy(at_least_float32(logits), y, label_smoothing=label_smoothing)
    loss = (1 - lam) * cross_entropy + lam * contrast
    return loss, {"ce": cross_entropy.detach(), "con": contrast.detach()}


def scl_rhe(
    x: Tensor,
    y: Tensor,
    T: float,
    beta_pos: float,
    beta_neg: float,
    eps_pos: float,
    eps_neg: float,
    detach_weights: bool = False,
    *,
    sibling_views: bool = False,
) -> Tensor:
    """Supervised contrast that is robust to human label errors (Eq. 5.19 as resolved in section 4.5).

    Defaults of the method: T 0.1, both betas 1, and the rates that
    :func:`~mca_perception.contrastive.label_errors.expected_pair_errors` gives for a label error rate of 3.3 %.

    Args:
        x: ``[M, D]`` projected embeddings, normalised inside.
        y: ``[M]`` integer class ids, some of them wrong.
        T: temperature.
        beta_pos: how much less easy positives count; above 1 they are repelled, unless the weights are detached.
        beta_neg: how much more hard negatives count.
        eps_pos: expected share of wrong pairs among the positives, below 1; advisable up to 0.2.
        eps_neg: expected share of wrong pairs among the negatives, below 1.
        detach_weights: no gradient through the weights.
        sibling_views: every row has a second view in the batch, which cannot be a wrong pair: anchor i's rate becomes
            ``eps_pos * (K_i - 1) / K_i`` (section 8, item 16). Training on two views should set it.
    """
    if beta_pos > 1 and not detach_weights:
        warnings.warn(
            f"beta_pos is {beta_pos}: above 1 easy positives are repelled; lower it or detach the weights",
            stacklevel=2,
        )
    form = InnerForm(T, beta_pos, beta_neg, eps_pos, eps_neg, detach_weights, sibling_views=sibling_views)
    return mean_over_anchors(x, y, T, form, needs_negatives=True)


def triplet_semi_hard(x: Tensor, y: Tensor, margin: float = 0.2) -> Tensor:
    """Triplet loss on squared distances of unit rows, with semi-hard negatives (FaceNet).

    For an anchor and one of its positives, the negative is the nearest one that is farther than the positive, or the
    farthest one if none is. Averaged over an anchor's positives, then over anchors.

    Args:
        x: ``[M, D]`` embeddings, normalised inside.
        y: ``[M]`` integer class ids.
        margin: in squared distance, 0 to 4 on the unit sphere.
    """
    if not margin > 0:
        raise ContrastiveError(f"margin is {margin}; it must be above 0, usually 0.1 to 0.5")
    return mean_over_anchors(x, y, 1.0, partial(_semi_hard, margin=margin), needs_negatives=True)


def two_views(first: Tensor, second: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Batch layout of section 1.1: rows i and i + B are views of one image, so that every anchor has a positive.

    Args:
        first: ``[B, D]`` embeddings of the first views.
        second: ``[B, D]`` embeddings of the second views.
        labels: ``[B]`` class ids.

    Returns:
        ``[2B, D]`` embeddings and ``[2B]`` labels.
    """
    if first.shape != second.shape or labels.shape != first.shape[:1]:
        raise ContrastiveError(
            f"views of shapes {list(first.shape)} and {list(second.shape)} with labels {list(labels.shape)}; pass two "
            "views and one label of every image"
        )
    return torch.cat([first, second]), torch.cat([labels, labels])


def _outer(anchors: Anchors) -> Tensor:
    others = anchors.negatives.similarity.scatter(1, anchors.itself[:, None], -torch.inf)
    return others.logsumexp(1) - _mean_over_positives(anchors, anchors.positives.similarity)


def _semi_hard(anchors: Anchors, margin: float) -> Tensor:
    to_positives, to_negatives = (2 - 2 * side.similarity for side in (anchors.positives, anchors.negatives))
    with torch.no_grad():
        ordered, column = torch.where(anchors.negatives.members, to_negatives, torch.inf).sort(1)
        nearest_beyond = torch.searchsorted(ordered, to_positives.contiguous(), right=True)
        farthest = anchors.negatives.size.long()[:, None] - 1
        chosen = column.gather(1, torch.minimum(nearest_beyond, farthest))
    return _mean_over_positives(anchors, F.relu(to_positives - to_negatives.gather(1, chosen) + margin))


def _mean_over_positives(anchors: Anchors, values: Tensor) -> Tensor:
    return torch.where(anchors.positives.members, values, 0).sum(1) / anchors.positives.size
