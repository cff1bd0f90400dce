"""Information types and priority on one shared feature (specification, section 3.7), for TREC-IS."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mca_perception.datasets.trec_is import INFORMATION_TYPES

__all__ = ["InformationHead", "InformationOutputs", "information_loss", "labels_from", "positive_weights"]

LARGEST_WEIGHT = 50.0
TYPE_SHARE = 0.5


class InformationOutputs(NamedTuple):
    """``types [N, 25]`` logits in the evaluator's order, ``priority [N]`` in 0 to 1."""

    types: Tensor
    priority: Tensor


class InformationHead(nn.Module):
    """One dense layer for the 25 information types, one for the priority."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.types = nn.Linear(width, len(INFORMATION_TYPES))
        self.priority = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> InformationOutputs:
        """``[N, D]`` features to both outputs."""
        return InformationOutputs(self.types(features), self.priority(features).squeeze(1).sigmoid())


def information_loss(
    outputs: InformationOutputs, types: Tensor, priority: Tensor, weights: Tensor | None = None
) -> Tensor:
    """``0.5 * BCE + 0.5 * MSE``; the cross-entropy is summed over types, both are means over posts.

    Args:
        outputs: of the head.
        types: ``[N, 25]`` of 0 and 1.
        priority: ``[N]`` gold score; NaN where there is none, which counts for nothing.
        weights: ``[25]`` of :func:`positive_weights`, or None.
    """
    entropy = nn.functional.binary_cross_entropy_with_logits(
        outputs.types, types.float(), pos_weight=weights, reduction="none"
    )
    known = ~priority.isnan()
    squared = (outputs.priority - priority.nan_to_num())[known].square()
    return TYPE_SHARE * entropy.sum(1).mean() + (1 - TYPE_SHARE) * squared.sum() / max(1, int(known.sum()))


def positive_weights(types: Tensor) -> Tensor:
    """``[25]``: negatives per positive of the training posts ``[N, 25]``, at most 50."""
    positives = types.float().sum(0)
    return ((len(types) - positives) / positives.clamp(min=1)).clamp(max=LARGEST_WEIGHT)


def labels_from(scores: Tensor, thresholds: Tensor) -> Tensor:
    """``[N, 25]`` of 0 and 1: scores at or above their threshold, and never none: else the highest score."""
    chosen = scores >= thresholds
    best = torch.zeros_like(chosen).scatter_(1, scores.argmax(1, keepdim=True), True)
    return torch.where(chosen.any(1, keepdim=True), chosen, best).long()
