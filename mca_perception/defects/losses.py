"""Losses for classes of very different frequency, and for clues."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_CLUE_WEIGHT = 3.0
"""Of patches with a clue, which are few."""


def class_balanced_weights(counts: Sequence[int], beta: float) -> Tensor:
    """Weights by the effective number of samples, ``(1 - beta) / (1 - beta ** n)`` (Cui et al. 2019, equation 2).

    Args:
        counts: training images of each class; a class without any gets weight 0.
        beta: 0 weighs all classes alike, towards 1 by inverse frequency.

    Returns:
        ``[C]`` float32 with mean 1 over the classes that occur.
    """
    numbers = torch.tensor(counts, dtype=torch.float64)
    weights = torch.where(numbers > 0, (1 - beta) / (1 - beta ** numbers.clamp(min=1)), 0.0)
    return (weights * (numbers > 0).sum() / weights.sum().clamp(min=1e-12)).float()


def focal_loss(logits: Tensor, labels: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Weighted mean of ``-(1 - p) ** gamma * log(p)`` (Lin et al. 2017, equation 4); ``gamma`` 0 is cross-entropy.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` int64.
        weights: ``[C]`` of the classes.
        gamma: how little images that are already right still count.
    """
    log_p = F.log_softmax(logits.float(), dim=-1).gather(1, labels[:, None])[:, 0]
    weight = weights.to(logits.device)[labels]
    return -(weight * (1 - log_p.exp()) ** gamma * log_p).sum() / weight.sum().clamp(min=1e-12)


def clue_loss(logits: Tensor, clues: Tensor) -> Tensor:
    """Binary cross-entropy of every patch: does a clue fall into it?

    Args:
        logits: ``[N, T, 2]`` of a square grid of patches, row by row.
        clues: uint8 ``[N, 2, S, S]``, from 128 where there is one.

    Returns:
        Mean over images, patches and kinds.
    """
    side = round(logits.shape[1] ** 0.5)
    truth = F.adaptive_max_pool2d((clues > 127).float(), side).flatten(2).transpose(1, 2)
    weight = torch.full((), _CLUE_WEIGHT, device=logits.device)
    return F.binary_cross_entropy_with_logits(logits.float(), truth, pos_weight=weight)
