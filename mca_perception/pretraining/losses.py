"""Losses of the pre-training objectives on plain tensors. The contrastive one is :func:`~.info_nce`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mca_perception.contrastive.paired import info_nce, logit_factor

__all__ = [
    "HardNegatives",
    "hard_negatives",
    "info_nce",
    "logit_factor",
    "masked_prediction_loss",
    "matching_labels",
    "matching_loss",
]


def masked_prediction_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over hidden positions only; 0, still differentiable, when nothing is hidden.

    Specification of the framework, section 6.2, with bidirectional context (inconsistency I-5).

    Args:
        logits: ``[M, C]`` of the hidden positions.
        targets: ``[M]`` int64.
    """
    if not len(targets):
        return logits.sum()
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)


class HardNegatives(NamedTuple):
    """Which item to pair wrongly with each item, both ``[N]`` int64.

    Attributes:
        images: for text i, the row of a wrong image.
        texts: for image i, the row of a wrong text.
    """

    images: Tensor
    texts: Tensor


def hard_negatives(
    similarity: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
) -> HardNegatives:
    """Draw for every image a wrong text, and for every text a wrong image, the likelier the more alike they look.

    Multinomial over the softmax of the similarities with the diagonal zeroed (specification of the framework, section
    6.3). Pairs with equal labels match as well and are not drawn either, unless there is nothing else.

    Args:
        similarity: ``[N, N]`` scaled logits, images by texts; N at least 2.
        labels: ``[N]`` int64, equal for items that match each other; None when all differ.
        generator: source of randomness, on the tensors' device.
    """
    own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    matching = own if labels is None else labels[:, None] == labels[None, :]
    only_matching = matching.all(dim=1, keepdim=True)
    logits = similarity.detach().float()

    def draw(scores: Tensor) -> Tensor:
        scores = torch.where(only_matching, 0.0, scores).masked_fill(
            torch.where(only_matching, own, matching), -torch.inf
        )
        return torch.multinomial(scores.softmax(dim=1), 1, generator=generator).squeeze(1)

    return HardNegatives(images=draw(logits.T), texts=draw(logits))


def matching_labels(count: int, device: torch.device) -> Tensor:
    """``[3 * count]`` int64: 1 for the pairs as they are, 0 for those with a wrong text, then a wrong image."""
    return (torch.arange(3 * count, device=device) < count).long()


def matching_loss(logits: Tensor) -> Tensor:
    """Two-way cross-entropy of ``[3N, 2]`` logits in the order of :func:`matching_labels`."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, matching_labels(len(logits) // 3, logits.device))
