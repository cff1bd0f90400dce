"""Assignment of tokens to objects and the losses of the edge segmentation head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mca_perception.segmentation.model import DenseOutput
from mca_perception.segmentation.refinement import Candidates, Refined

# A token is positive when it lies within this fraction of sqrt(visible area) of the object's centre.
CENTRE_RADIUS = 0.25
# The tote's centre is a fifth of the image: its many equal tokens would crowd out the objects among the candidates.
MAX_TOKENS = 9
# Lower bound of a positive's score target, so that objectness is learned before the masks are good.
MIN_QUALITY = 0.1
# A candidate describes an object when its mask overlaps it by this IoU, and by this share of the best candidate's.
MATCH_IOU = 0.3
NEAR_BEST = 0.9


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

    def of(self, label: Tensor) -> SegmentationTargets:
        """The objects of one class."""
        chosen = self.labels == label
        return SegmentationTargets(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def to(self, device: torch.device) -> SegmentationTargets:
        """The same targets on another device."""
        return SegmentationTargets(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def assign_tokens(targets: SegmentationTargets, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Match tokens of an ``height x width`` grid to objects of one class.

    A token belongs to the smallest object whose centre is near (``CENTRE_RADIUS``) and that has it among its
    ``MAX_TOKENS`` nearest; every object also gets the token its centre falls into.

    Returns:
        ``tokens [P]`` flat token indices and ``objects [P]`` the object of each.
    """
    device = targets.masks.device
    x = torch.arange(width, device=device) + 0.5
    y = torch.arange(height, device=device) + 0.5
    points = torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1)
    distance = (points[None] - targets.centres[:, None]).norm(dim=-1)
    nearest, places = distance.topk(min(MAX_TOKENS, distance.shape[1]), dim=1, largest=False)
    close = nearest <= CENTRE_RADIUS * targets.areas.sqrt()[:, None]
    close[:, 0] = True
    near = torch.zeros_like(distance, dtype=torch.bool).scatter_(1, places, close)
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


def pairwise_mask_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU of every binarised mask with every true one, ``[K, h, w], [M, h, w] -> [K, M]``."""
    predicted, truth = (logits > 0).flatten(1).float(), (truth > 0.5).flatten(1).float()
    intersection = predicted @ truth.T
    union = predicted.sum(1)[:, None] + truth.sum(1)[None] - intersection
    return intersection / union.clamp(min=1)


def quality_focal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """Sum of the quality focal loss (Li et al. 2020, Eq. 2, beta = 2) over all scores.

    The target of a positive is the IoU of its own mask, so that ranking by score is ranking by mask quality.
    """
    error = (quality - logits.sigmoid()).abs().square()
    return (error * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")).sum()


def segmentation_loss(
    output: DenseOutput, targets: list[SegmentationTargets], grid: tuple[int, int]
) -> dict[str, Tensor]:
    """Losses of the tokens: ``score`` (quality focal), ``mask_bce`` and ``mask_dice``, averaged over positives."""
    quality = torch.zeros_like(output.class_logits)
    masks = _MaskLosses()
    # unbind, not an index in the loop, whose gradient would be a tensor for the whole batch each time.
    kernels, bases = output.kernels.unbind(), output.basis.flatten(2).unbind()
    for index, truth in enumerate(targets):
        for label in torch.unique(truth.labels):
            mine = truth.of(label)
            tokens, owner = assign_tokens(mine, *grid)
            logits = (kernels[index][tokens, label] @ bases[index]).view(-1, *mine.masks.shape[1:])
            masks.add(logits, mine.masks[owner])
            iou = mask_iou(logits.detach(), mine.masks[owner])
            quality[index, tokens, label] = iou.clamp(min=MIN_QUALITY)
    bce, dice = masks.means(output.basis)
    return {
        "score": quality_focal_loss(output.class_logits, quality) / max(1, masks.count),
        "mask_bce": 2 * bce,
        "mask_dice": 2 * dice,
    }


def refinement_loss(
    candidates: Candidates, refined: Refined, targets: list[SegmentationTargets]
) -> dict[str, Tensor]:
    """Losses of the refinement: ``refined_score``, ``refined_bce``, ``refined_dice``, averaged over positives.

    A candidate is positive when its mask covers an object of its class about as well as the best candidate does
    (``NEAR_BEST``), and by ``MATCH_IOU`` at least. Positives learn the object's mask and to state its IoU, all others
    to state 0: what overlaps too little to be removed as a duplicate must rank below every object.
    """
    quality = torch.zeros_like(refined.quality_logits)
    masks = _MaskLosses()
    mask_logits = refined.mask_logits.unbind()
    for index, truth in enumerate(targets):
        if len(truth.labels) == 0:
            continue
        other = candidates.labels[index][:, None] != truth.labels[None]
        before = pairwise_mask_iou(candidates.mask_logits[index], truth.masks).masked_fill(other, 0)
        iou, owner = before.max(dim=1)
        best = before.max(dim=0).values[owner]
        chosen = iou >= (NEAR_BEST * best).clamp(min=MATCH_IOU)
        logits, truths = mask_logits[index][chosen], truth.masks[owner[chosen]]
        masks.add(logits, truths)
        quality[index, chosen] = mask_iou(logits.detach(), truths)
    bce, dice = masks.means(refined.mask_logits)
    return {
        "refined_score": quality_focal_loss(refined.quality_logits, quality) / max(1, masks.count),
        "refined_bce": 2 * bce,
        "refined_dice": 2 * dice,
    }


class _MaskLosses:
    """Gathers mask losses over the images of a batch."""

    def __init__(self) -> None:
        self.bce: list[Tensor] = []
        self.dice: list[Tensor] = []

    def add(self, logits: Tensor, truth: Tensor) -> None:
        """Masks ``[P, h, w]`` and what they should be."""
        self.bce.append(F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=(1, 2)))
        self.dice.append(dice_loss(logits, truth))

    @property
    def count(self) -> int:
        """Masks so far."""
        return sum(len(part) for part in self.dice)

    def means(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean BCE and dice loss; without masks, zeros that keep ``like`` in the graph."""
        if self.count == 0:
            return like.sum() * 0, like.sum() * 0
        return torch.cat(self.bce).mean(), torch.cat(self.dice).mean()
