"""Assignment of tokens to objects and the losses of the edge segmentation head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mca_perception.segmentation.model import DenseOutput

# A token is positive when it lies within this fraction of sqrt(visible area) of the object's centre.
CENTRE_RADIUS = 0.25
# Lower bound of a positive's score target, so that objectness is learned before the masks are good.
MIN_QUALITY = 0.1


@dataclass(frozen=True)
class SegmentationTargets:
    """Truth of one image at the network's input size.

    Attributes:
        masks: ``[M, h, w]`` float32, covered fraction of every stride-4 cell.
        labels: ``[M]`` int64.
        centres: ``[M, 2]`` float32, (x, y) in token units: a point on the visible object near its centroid.
        areas: ``[M]`` float32 visible area in token units squared.
    """

    masks: Tensor
    labels: Tensor
    centres: Tensor
    areas: Tensor

    def to(self, device: torch.device) -> SegmentationTargets:
        """The same targets on another device."""
        return SegmentationTargets(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def assign_tokens(targets: SegmentationTargets, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Match tokens of an ``height x width`` grid to objects.

    A token belongs to the smallest object whose centre is near (``CENTRE_RADIUS``); every object also gets the token
    its centre falls into.

    Returns:
        ``tokens [P]`` flat token indices and ``objects [P]`` the object of each.
    """
    device = targets.masks.device
    x = torch.arange(width, device=device) + 0.5
    y = torch.arange(height, device=device) + 0.5
    points = torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1)
    distance = (points[None] - targets.centres[:, None]).norm(dim=-1)
    near = distance <= CENTRE_RADIUS * targets.areas.sqrt()[:, None]
    near.scatter_(1, distance.argmin(dim=1, keepdim=True), True)
    cost = torch.where(near, targets.areas[:, None], torch.inf)
    smallest, owner = cost.min(dim=0)
    tokens = smallest.isfinite().nonzero()[:, 0]
    return tokens, owner[tokens]


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Soft dice loss of each mask, ``[P, h, w] -> [P]``."""
    probability, truth = logits.sigmoid().flatten(1), truth.flatten(1)
    overlap = 2 * (probability * truth).sum(1)
    return 1 - (overlap + 1) / (probability.square().sum(1) + truth.square().sum(1) + 1)


def mask_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU of binarised masks, ``[P, h, w] -> [P]``."""
    predicted, truth = (logits > 0).flatten(1), (truth > 0.5).flatten(1)
    return (predicted & truth).sum(1) / (predicted | truth).sum(1).clamp(min=1)


def quality_focal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """Sum of the quality focal loss (Li et al. 2020, Eq. 2, beta = 2) over all scores.

    The target of a positive is the IoU of its own mask, so that ranking by score is ranking by mask quality.
    """
    error = (quality - logits.sigmoid()).abs().square()
    return (error * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")).sum()


def segmentation_loss(
    output: DenseOutput, targets: list[SegmentationTargets], grid: tuple[int, int]
) -> dict[str, Tensor]:
    """Losses of a batch: ``score`` (quality focal), ``mask_bce`` and ``mask_dice``, averaged over positives."""
    quality = torch.zeros_like(output.class_logits)
    bce, dice = [], []
    for index, truth in enumerate(targets):
        if len(truth.labels) == 0:
            continue
        tokens, owner = assign_tokens(truth, *grid)
        logits = (output.kernels[index, tokens] @ output.basis[index].flatten(1)).view(
            -1, *truth.masks.shape[1:]
        )
        masks = truth.masks[owner]
        bce.append(F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(dim=(1, 2)))
        dice.append(dice_loss(logits, masks))
        quality[index, tokens, truth.labels[owner]] = mask_iou(logits.detach(), masks).clamp(min=MIN_QUALITY)
    positives = max(1, sum(len(part) for part in dice))
    zero = output.basis.sum() * 0
    return {
        "score": quality_focal_loss(output.class_logits, quality) / positives,
        "mask_bce": 2 * (torch.cat(bce).sum() if bce else zero) / positives,
        "mask_dice": 2 * (torch.cat(dice).sum() if dice else zero) / positives,
    }
