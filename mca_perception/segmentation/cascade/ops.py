"""NMS, Soft-NMS and RoIAlign in plain torch; torchvision's kernels take their place when it can be imported."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mca_perception.segmentation.cascade.boxes import box_iou

__all__ = ["batched_nms", "nms", "roi_align", "soft_nms", "torch_nms", "torch_roi_align"]

# Largest intermediate of the plain RoIAlign, in numbers; more boxes are pooled in several rounds.
_MAX_ELEMENTS = 2**25


@lru_cache(maxsize=1)
def _torchvision_ops() -> Any | None:
    """``torchvision.ops``, or ``None`` where it is not installed or does not match the installed torch."""
    try:
        return importlib.import_module("torchvision.ops")
    except (ImportError, OSError, RuntimeError):
        return None


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: float32 ``[N, 4]`` xyxy.
        scores: ``[N]``.
        iou_threshold: a box is removed when it overlaps a better kept box by more than this IoU.

    Returns:
        int64 ``[M]`` indices of the kept boxes, best score first.
    """
    library = _torchvision_ops()
    kept: Tensor = (
        torch_nms(boxes, scores, iou_threshold)
        if library is None
        else library.nms(boxes, scores, iou_threshold)
    )
    return kept


def torch_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms` without torchvision.

    The greedy choice is the only solution of "kept = not overlapped by a better kept box"; iterating that rule from
    "all kept" settles it from the best box downwards, in as many rounds as the longest chain of removals.
    """
    order = scores.argsort(descending=True, stable=True)
    rivals = (box_iou(boxes[order], boxes[order]) > iou_threshold).triu(1)
    kept = torch.ones_like(order, dtype=torch.bool)
    while True:
        settled = ~(rivals & kept[:, None]).any(dim=0)
        if bool((settled == kept).all()):
            return order[kept]
        kept = settled


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms` within each group (a class or a pyramid level); ``groups [N]`` are any integers."""
    kept = [boxes.new_zeros(0, dtype=torch.long)]
    for group in torch.unique(groups):
        members = (groups == group).nonzero()[:, 0]
        kept.append(members[nms(boxes[members], scores[members], iou_threshold)])
    joined = torch.cat(kept)
    return joined[scores[joined].argsort(descending=True, stable=True)]


def soft_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, *, sigma: float, min_score: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Gaussian Soft-NMS (Bodla et al. 2017, Eq. 4) within each group.

    The best box is taken, the others of its group are multiplied by ``exp(-IoU^2 / sigma)``, and again.

    Args:
        boxes: ``[N, 4]`` xyxy.
        scores: ``[N]``.
        groups: ``[N]`` integers.
        sigma: width of the Gaussian.
        min_score: stop when no lowered score reaches this.
        limit: take at most this many boxes.

    Returns:
        int64 ``[M]`` indices in the order taken and their lowered scores ``[M]``.
    """
    penalty = torch.exp(-box_iou(boxes, boxes).square() / sigma)
    penalty = torch.where(groups[:, None] == groups[None, :], penalty, torch.ones_like(penalty))
    remaining = scores.clone()
    taken: list[Tensor] = []
    lowered: list[Tensor] = []
    for _ in range(min(limit, len(scores))):
        score, index = remaining.max(dim=0)
        if score < min_score:
            break
        taken.append(index)
        lowered.append(score)
        remaining = remaining * penalty[index]
        remaining[index] = -1.0
    if not taken:
        return scores.new_zeros(0, dtype=torch.long), scores.new_zeros(0)
    return torch.stack(taken), torch.stack(lowered)


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average-pool boxes of feature maps with bilinear samples ("Mask R-CNN", RoIAlign).

    Args:
        features: ``[N, C, H, W]``.
        rois: float32 ``[K, 5]``: index of the map, then xyxy in pixels.
        output_size: bins per axis ``S``.
        spatial_scale: cells per pixel.
        sampling_ratio: samples per bin and axis; 0 takes ``ceil(box cells / S)``.
        aligned: shift the box by half a cell.

    Returns:
        ``[K, C, S, S]``, computed in float32 and returned in the type of ``features``.
    """
    library = _torchvision_ops()
    # On a CPU, torchvision's backward pass takes two to three times as long as the matrix products below.
    trains_on_cpu = features.requires_grad and features.device.type == "cpu"
    with torch.autocast(features.device.type, enabled=False):
        values, rois = features.float(), rois.float()
        pooled: Tensor
        if library is None or trains_on_cpu:
            pooled = torch_roi_align(values, rois, output_size, spatial_scale, sampling_ratio, aligned)
        else:
            pooled = library.roi_align(
                values, rois, (output_size, output_size), spatial_scale, sampling_ratio, aligned
            )
    return pooled.to(features.dtype)


def torch_roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """:func:`roi_align` without torchvision.

    The mean of bilinear samples on a regular grid is separable: pooling a box is ``rows @ map @ columns.T`` with one
    matrix of averaged interpolation weights per axis.
    """
    channels, height, width = features.shape[1:]
    edges = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    rows = _pooling_weights(edges[:, 1], edges[:, 3], output_size, height, sampling_ratio, aligned)
    columns = _pooling_weights(edges[:, 0], edges[:, 2], output_size, width, sampling_ratio, aligned)
    pooled = features.new_zeros(len(rois), channels, output_size, output_size)
    chunk = max(1, _MAX_ELEMENTS // (output_size * channels * width))
    for image in torch.unique(rois[:, 0].long()).tolist():
        by_row = features[image].transpose(0, 1).reshape(height, channels * width)
        members = (rois[:, 0] == image).nonzero()[:, 0]
        for part in members.split(chunk):
            vertical = rows[part].flatten(0, 1) @ by_row
            vertical = vertical.view(len(part), output_size * channels, width)
            both = vertical @ columns[part].transpose(1, 2)
            both = both.view(len(part), output_size, channels, output_size).transpose(1, 2)
            pooled = pooled.index_copy(0, part, both)
    return pooled


def _pooling_weights(
    start: Tensor, end: Tensor, bins: int, cells: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Weights ``[K, bins, cells]`` of one axis: the mean over a bin's samples of their interpolation weights.

    A sample more than one cell outside the map counts as zero.
    """
    length = end - start if aligned else (end - start).clamp(min=1.0)
    step = length / bins
    samples = torch.full_like(step, float(sampling_ratio)) if sampling_ratio > 0 else step.ceil()
    most = int(samples.max()) if len(samples) else 0
    number = torch.arange(most, device=start.device, dtype=start.dtype)
    inside = (number + 0.5) * step[:, None] / samples.clamp(min=1)[:, None]
    edge = start[:, None] + torch.arange(bins, device=start.device, dtype=start.dtype) * step[:, None]
    # Summed in the order of torchvision's kernel: in float32, another order moves a sample by up to 1e-4 cells.
    position = edge[:, :, None] + inside[:, None, :]
    counted = (number < samples[:, None])[:, None, :] & (position >= -1) & (position <= cells)
    share = counted / samples.clamp(min=1)[:, None, None]
    position = position.clamp(0, cells - 1)
    low = position.floor()
    upper = position - low
    weights = start.new_zeros(len(start), bins, cells)
    weights.scatter_add_(2, low.long(), (1 - upper) * share)
    return weights.scatter_add_(2, (low.long() + 1).clamp(max=cells - 1), upper * share)
