"""Arithmetic of boxes: overlap, clipping and the regression code of the R-CNN family."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["box_area", "box_iou", "clip_boxes", "decode_boxes", "encode_boxes", "has_size"]

# Largest log of a decoded size ratio, so that exp() of a wild prediction stays finite: a 16 px anchor to 1000 px.
_MAX_LOG_RATIO = math.log(1000.0 / 16)


def box_area(boxes: Tensor) -> Tensor:
    """Area of ``[..., 4]`` xyxy boxes."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair, ``[M, 4], [N, 4] -> [M, N]``."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=-1)
    return common / (box_area(first)[:, None] + box_area(second)[None] - common)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip ``[..., 4]`` xyxy boxes to an image of ``(height, width)``."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], dim=-1).flatten(-2)


def has_size(boxes: Tensor, smallest: float) -> Tensor:
    """Whether both sides of ``[..., 4]`` boxes are at least ``smallest`` pixels."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= smallest).all(dim=-1)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and sizes ``[..., 2]`` as (x, y)."""
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode_boxes(truth: Tensor, boxes: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Code of ``truth`` relative to ``boxes``: what the network regresses ("R-CNN", Appendix C).

    Args:
        truth: ``[K, 4]`` xyxy.
        boxes: ``[K, 4]`` xyxy, with positive sizes.
        weights: factors on (dx, dy, dw, dh).

    Returns:
        ``[K, 4]``: shift of the centre in box sizes and log of the size ratio, weighted.
    """
    truth_centre, truth_size = _centres(truth)
    centre, size = _centres(boxes)
    code = torch.cat([(truth_centre - centre) / size, torch.log(truth_size / size)], dim=-1)
    return code * code.new_tensor(weights)


def decode_boxes(code: Tensor, boxes: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Inverse of :func:`encode_boxes`; leading dimensions of ``code [..., 4]`` and ``boxes`` broadcast."""
    centre, size = _centres(boxes)
    code = code / code.new_tensor(weights)
    centre = centre + code[..., :2] * size
    half = 0.5 * size * code[..., 2:].clamp(max=_MAX_LOG_RATIO).exp()
    return torch.cat([centre - half, centre + half], dim=-1)
