"""How hard a set of scenes is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.coco import ImageRecord

__all__ = ["describe_difficulty"]


def describe_difficulty(
    records: Sequence[ImageRecord], categories: Sequence[str]
) -> dict[str, float | int | None]:
    """Say how hard a set is: how many objects an image has, how small they are and how they overlap.

    Args:
        records: images with their annotations.
        categories: names of the classes that count as objects; crowd regions do not.

    Returns:
        Figures by name, ``None`` where there is no object to compute them from. ``occluded_share`` is the share
        of objects that hide more than a tenth of their silhouette, among those whose annotation tells.
    """
    counts, areas, overlaps, visible = [], [], [], []
    for record in records:
        objects = [a for a in record.annotations if a.category in categories and not a.is_crowd]
        counts.append(len(objects))
        areas += [a.area / (record.height * record.width) for a in objects]
        overlaps += _largest_box_iou(np.array([a.box for a in objects]).reshape(-1, 4)).tolist()
        visible += [a.visible_fraction for a in objects if a.visible_fraction is not None]
    share, overlap = np.array(areas), np.array(overlaps)
    return {
        "objects": len(areas),
        "objects_per_image_mean": _mean(np.array(counts)),
        "objects_per_image_median": float(np.median(counts)) if counts else None,
        "objects_per_image_max": max(counts, default=0),
        "object_area_median": float(np.median(share)) if areas else None,
        "small_objects_share": _mean(share < 1 / 64),
        "occluded_share": _mean(np.array(visible) < 0.9),
        "objects_with_known_occlusion": len(visible),
        "objects_with_overlapping_box_share": _mean(overlap > 0.05),
        "largest_box_iou_mean": _mean(overlap),
    }


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None


def _largest_box_iou(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest IoU of every box with another one."""
    if len(boxes) < 2:
        return np.zeros(len(boxes))
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    iou = common / np.maximum(areas[:, None] + areas[None, :] - common, 1e-9)
    np.fill_diagonal(iou, 0)
    largest: NDArray[np.float64] = iou.max(axis=1)
    return largest
