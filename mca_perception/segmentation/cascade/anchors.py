"""Anchor boxes of the pyramid levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["base_anchors", "grid_anchors"]


def base_anchors(size: float, ratios: Sequence[float]) -> Tensor:
    """Anchors around the origin, ``[A, 4]`` xyxy, of area ``size**2`` with ``ratios`` = height / width.

    Rounded to whole pixels, as in torchvision.
    """
    root = torch.as_tensor(ratios, dtype=torch.float32).sqrt()
    width, height = size / root, size * root
    return (torch.stack([-width, -height, width, height], dim=1) / 2).round()


def grid_anchors(base: Tensor, rows: int, columns: int, stride: int) -> Tensor:
    """Shift ``base [A, 4]`` to every cell's upper left corner.

    Returns:
        ``[rows * columns * A, 4]`` xyxy in pixels, row-major, anchors of one cell together.
    """
    y = torch.arange(rows, device=base.device, dtype=base.dtype) * stride
    x = torch.arange(columns, device=base.device, dtype=base.dtype) * stride
    corners = torch.stack([x.repeat(rows), y.repeat_interleave(columns)], dim=1).repeat(1, 2)
    return (corners[:, None] + base).flatten(0, 1)
