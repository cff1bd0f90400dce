"""Random boxes and masks for the detector's tests."""

from __future__ import annotations

import torch
from torch import Tensor

from mca_perception.segmentation.cascade.targets import DetectionTargets


def random_boxes(count: int, size: tuple[int, int], seed: int, smallest: float = 2.0) -> Tensor:
    """``[count, 4]`` boxes inside ``(height, width)``; sides from ``smallest`` to half the image."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    sides = smallest + torch.rand(count, 2, generator=generator) * (
        torch.tensor([width, height]) / 2 - smallest
    )
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    return torch.cat([corner, corner + sides], dim=1)


def random_targets(count: int, size: tuple[int, int], classes: int, seed: int) -> DetectionTargets:
    """Ellipses with their tight boxes."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, size, seed, smallest=16.0)
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    masks = (
        ((x - centre[:, 0, None, None]) / half[:, 0, None, None]).square()
        + ((y - centre[:, 1, None, None]) / half[:, 1, None, None]).square()
    ) <= 1
    return DetectionTargets(boxes, torch.randint(classes, (count,), generator=generator), masks)
