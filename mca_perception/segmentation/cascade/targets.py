"""Truth and result of one image, as the detector sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mca_perception.geometry import Letterbox
from mca_perception.segmentation.cascade.postprocess import BoxCandidates

__all__ = ["DetectionTargets", "Detections"]


@dataclass(frozen=True)
class DetectionTargets:
    """Truth of one image at the network's input size.

    Attributes:
        boxes: ``[M, 4]`` float32 xyxy in input pixels, right and bottom edges exclusive, of positive size.
        labels: ``[M]`` int64 indices into the configuration's ``labels``.
        masks: ``[M, H, W]`` bool, at the input's resolution; they may overlap.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor

    def to(self, device: torch.device) -> DetectionTargets:
        """The same targets on another device."""
        return DetectionTargets(self.boxes.to(device), self.labels.to(device), self.masks.to(device))


@dataclass(frozen=True)
class Detections:
    """Objects found in one image, best first.

    Attributes:
        boxes: ``[K, 4]`` float32 xyxy in input pixels.
        scores: ``[K]`` probabilities.
        labels: ``[K]`` int64 indices into the configuration's ``labels``.
        masks: ``[K, S, S]`` mask probabilities over each box (S = 28 as published).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def candidates(self, letterbox: Letterbox) -> BoxCandidates:
        """The same on the host, ready to become objects of the original image that ``letterbox`` shrank."""
        arrays = (value.float().cpu().numpy() for value in (self.scores, self.boxes, self.masks))
        scores, boxes, masks = arrays
        return BoxCandidates(scores, self.labels.cpu().numpy(), boxes, masks, letterbox)
