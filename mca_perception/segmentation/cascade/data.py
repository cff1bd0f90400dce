"""Training samples of the detector: boxes and whole masks at the network's resolution."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mca_perception.segmentation.cascade.targets import DetectionTargets
from mca_perception.segmentation.data import SegmentationDataset

__all__ = ["DetectionDataset", "DetectionSample", "build_targets", "collate"]


class DetectionSample(NamedTuple):
    """``image [3, H, W]`` uint8 RGB and its targets."""

    image: Tensor
    targets: DetectionTargets


class DetectionDataset(Dataset[DetectionSample]):
    """The scenes of a :class:`~mca_perception.segmentation.data.SegmentationDataset`, each object on its own."""

    def __init__(self, scenes: SegmentationDataset) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> DetectionSample:
        scene = self.scenes.scene(index)
        return DetectionSample(scene.image, build_targets(scene.instances, self.scenes.input_size))


def build_targets(
    instances: Iterable[tuple[NDArray[np.uint8], int]], input_size: tuple[int, int]
) -> DetectionTargets:
    """Boxes and masks of supersampled instances.

    A pixel belongs to an object that covers at least half of it. Boxes are tight around the mask; an object that
    covers no pixel so far is left out.

    Args:
        instances: mask of 0 and 1 at a multiple of the input's size, and label, per object.
        input_size: ``(height, width)`` of the network's input.
    """
    masks: list[NDArray[np.bool_]] = []
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for drawn, label in instances:
        coverage = cv2.resize(drawn.astype(np.float32), input_size[::-1], interpolation=cv2.INTER_AREA)
        mask = np.asarray(coverage >= 0.5, np.bool_)
        if mask.any():
            left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
            masks.append(mask)
            boxes.append((left, top, left + width, top + height))
            labels.append(label)
    return DetectionTargets(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *input_size), np.bool_)),
    )


def collate(samples: list[DetectionSample]) -> tuple[Tensor, list[DetectionTargets]]:
    """Stack images; targets stay one per image because their number of objects differs."""
    return torch.stack([sample.image for sample in samples]), [sample.targets for sample in samples]
