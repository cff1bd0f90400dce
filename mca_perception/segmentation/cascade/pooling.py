"""RoIAlign from the pyramid level that fits each box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mca_perception.segmentation.cascade.boxes import box_area
from mca_perception.segmentation.cascade.config import PoolingConfig
from mca_perception.segmentation.cascade.ops import roi_align

__all__ = ["assign_levels", "pool_boxes", "with_image_index"]

# The level of a box of canonical size.
_CANONICAL_STRIDE = 16
# Keeps a box of exactly a level's size from falling a level lower by rounding, as in torchvision.
_EPSILON = 1e-6


def with_image_index(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes ``[K_i, 4]`` of each image as one ``[K, 5]``: image index first."""
    indices = [part.new_full((len(part), 1), float(index)) for index, part in enumerate(boxes)]
    return torch.cat([torch.cat(pair, dim=1) for pair in zip(indices, boxes, strict=True)])


def assign_levels(boxes: Tensor, strides: Sequence[int], canonical_size: float) -> Tensor:
    """Index into ``strides`` of the map that each box ``[K, 4]`` is pooled from ("FPN", Eq. 1)."""
    finest = strides[0].bit_length() - 1
    canonical = _CANONICAL_STRIDE.bit_length() - 1
    level = (canonical + torch.log2(box_area(boxes).sqrt() / canonical_size) + _EPSILON).floor()
    return (level - finest).clamp(0, len(strides) - 1).long()


def pool_boxes(
    maps: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Sequence[Tensor],
    resolution: int,
    config: PoolingConfig,
) -> Tensor:
    """Features of boxes.

    Args:
        maps: ``[N, C, h, w]`` per level.
        strides: pixels per cell of each map.
        boxes: ``[K_i, 4]`` xyxy in pixels, one tensor per image.
        resolution: bins per axis ``S``.
        config: RoIAlign settings.

    Returns:
        ``[K, C, S, S]`` in the order of the boxes.
    """
    rois = with_image_index(boxes)
    levels = assign_levels(rois[:, 1:], strides, config.canonical_size)
    pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], resolution, resolution)
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        members = (levels == level).nonzero()[:, 0]
        values = roi_align(
            features, rois[members], resolution, 1 / stride, config.sampling_ratio, config.aligned
        )
        pooled = pooled.index_copy(0, members, values.to(pooled.dtype))
    return pooled
