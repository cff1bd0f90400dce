"""Which boxes belong to which object, and which of them a loss looks at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mca_perception.segmentation.cascade.boxes import box_iou

__all__ = ["BACKGROUND", "IGNORED", "Matcher", "Sampler"]

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class Matcher:
    """Assigns every box to the object it overlaps most.

    Attributes:
        foreground_iou: from this IoU on a box belongs to the object.
        background_iou: below this it is background; between the two it is ignored.
        keep_best: every object also gets the boxes with which its own overlap is largest, however small that is.
            Such a box belongs to the object that *it* overlaps most, as in torchvision and detectron2.
    """

    foreground_iou: float
    background_iou: float
    keep_best: bool = False

    def __call__(self, truth: Tensor, boxes: Tensor) -> Tensor:
        """``truth [M, 4]`` and ``boxes [N, 4]`` to int64 ``[N]``: object index, ``BACKGROUND`` or ``IGNORED``."""
        if len(truth) == 0:
            return torch.full((len(boxes),), BACKGROUND, dtype=torch.long, device=boxes.device)
        overlap = box_iou(truth, boxes)
        largest, owner = overlap.max(dim=0)
        matches = torch.where(largest >= self.foreground_iou, owner, IGNORED)
        matches = torch.where(largest < self.background_iou, BACKGROUND, matches)
        if self.keep_best and len(boxes):
            is_best = (overlap == overlap.max(dim=1, keepdim=True).values).any(dim=0)
            matches = torch.where(is_best, owner, matches)
        return matches


@dataclass
class Sampler:
    """Draws boxes at random, positives up to a share and negatives for the rest.

    Attributes:
        samples: boxes to draw.
        positive_fraction: largest share of positives.
        generator: source of randomness; torch's global one by default.
    """

    samples: int
    positive_fraction: float
    generator: torch.Generator | None = None

    def __call__(self, matches: Tensor) -> Tensor:
        """Ascending indices of the drawn boxes, from the matches of one image."""
        positive = (matches >= 0).nonzero()[:, 0]
        negative = (matches == BACKGROUND).nonzero()[:, 0]
        positives = min(len(positive), int(self.samples * self.positive_fraction))
        negatives = min(len(negative), self.samples - positives)
        chosen = torch.cat([self._draw(positive, positives), self._draw(negative, negatives)])
        return chosen.sort().values

    def _draw(self, candidates: Tensor, count: int) -> Tensor:
        order = torch.randperm(len(candidates), generator=self.generator, device=candidates.device)
        return candidates[order[:count]]
