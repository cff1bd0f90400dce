"""Polygons and run-length masks of annotation files: checked, measured, clipped and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import DatasetError
from mca_perception.geometry import MAX_PIXELS

__all__ = ["Segmentation", "Shape", "ShapeError", "parse_segmentation", "rasterise_segmentation"]

MAX_POLYGON_POINTS = 100_000
MIN_AREA = 1.0

Segmentation = list[list[float]] | dict[str, Any]
"""Polygons ``[[x, y, x, y, ...], ...]`` in pixels, or a COCO RLE."""


class ShapeError(ValueError):
    """A segmentation that cannot be used; the message is a short reason to count by."""


@dataclass(frozen=True)
class Shape:
    """A usable segmentation, its box xyxy, its area in square pixels, and whether it had to be clipped."""

    segmentation: Segmentation
    box: tuple[float, float, float, float]
    area: float
    clipped: bool = False


def parse_segmentation(segmentation: Any, height: int, width: int) -> Shape:
    """Check a COCO segmentation of an image of the given size.

    Polygons that reach over the border are clipped to the image.

    Raises:
        ShapeError: it is malformed, outside the image or without area.
    """
    shape = (
        _parse_rle(segmentation, height, width)
        if isinstance(segmentation, dict)
        else _parse_polygons(segmentation, height, width)
    )
    if shape.area < MIN_AREA:
        raise ShapeError("annotation of zero area")
    return shape


def rasterise_segmentation(segmentation: Segmentation, height: int, width: int) -> NDArray[np.bool_]:
    """Draw a segmentation by pycocotools' own rule, so that training and evaluation see the same pixels.

    Returns:
        bool ``[height, width]``.

    Raises:
        DatasetError: the size exceeds the limit, or an RLE belongs to another size.
    """
    from pycocotools import mask as coco_mask

    if not 0 < height * width <= MAX_PIXELS:
        raise DatasetError(
            f"a mask of {width} x {height} exceeds {MAX_PIXELS:,} pixels; reduce the image first"
        )
    if isinstance(segmentation, dict) and list(segmentation["size"]) != [height, width]:
        raise DatasetError(
            f"an RLE of {segmentation['size']} does not fit an image of {[height, width]}; correct the file"
        )
    encoded: Any = segmentation
    if isinstance(segmentation, list):
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = coco_mask.frPyObjects(segmentation, height, width)
    return np.asarray(coco_mask.decode(encoded), dtype=np.bool_)


def _parse_polygons(segmentation: Any, height: int, width: int) -> Shape:
    if not isinstance(segmentation, list) or not segmentation:
        raise ShapeError("annotation without segmentation")
    polygons = [_points(flat) for flat in segmentation]
    clipped = [_clip(points, height, width) for points in polygons]
    inside = [points for points in clipped if len(points) >= 3]
    if not inside:
        raise ShapeError("annotation outside the image")
    (x1, y1), (x2, y2) = np.concatenate(inside).min(axis=0), np.concatenate(inside).max(axis=0)
    return Shape(
        segmentation=[points.ravel().tolist() for points in inside],
        box=(float(x1), float(y1), float(x2), float(y2)),
        area=sum(_area(points) for points in inside),
        clipped=any(new is not old for new, old in zip(clipped, polygons, strict=True)),
    )


def _points(flat: Any) -> NDArray[np.float64]:
    """Turn ``[x, y, x, y, ...]`` into ``[P, 2]``."""
    if not isinstance(flat, list) or len(flat) % 2 or not 6 <= len(flat) <= 2 * MAX_POLYGON_POINTS:
        raise ShapeError("annotation with an invalid polygon")
    try:
        points = np.asarray(flat, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise ShapeError("annotation with an invalid polygon") from None
    if not np.isfinite(points).all():
        raise ShapeError("annotation with an invalid polygon")
    return points


def _area(points: NDArray[np.float64]) -> float:
    x, y = points[:, 0], points[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _clip(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Clip to the image (Sutherland-Hodgman); the same array comes back when nothing lies outside."""
    if (points >= 0).all() and (points <= (width, height)).all():
        return points
    for axis, sign, bound in ((0, 1, 0), (0, -1, -width), (1, 1, 0), (1, -1, -height)):
        distance = sign * points[:, axis] - bound
        kept = []
        for i in range(len(points)):
            j = (i + 1) % len(points)
            if distance[i] >= 0:
                kept.append(points[i])
            if (distance[i] >= 0) != (distance[j] >= 0):
                kept.append(points[i] + (points[j] - points[i]) * distance[i] / (distance[i] - distance[j]))
        points = np.array(kept).reshape(-1, 2)
        if len(points) == 0:
            return points
    return points


def _parse_rle(rle: dict[str, Any], height: int, width: int) -> Shape:
    from pycocotools import mask as coco_mask

    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width] or not isinstance(counts, (list, str)) or not counts:
        raise ShapeError("annotation with an invalid RLE")
    encoded = rle
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise ShapeError("annotation with an invalid RLE")
        encoded = coco_mask.frPyObjects(rle, height, width)
    try:
        area = float(coco_mask.area(encoded))
        x, y, w, h = (float(value) for value in coco_mask.toBbox(encoded))
    except (TypeError, ValueError):
        raise ShapeError("annotation with an invalid RLE") from None
    if area > height * width or x + w > width or y + h > height:
        raise ShapeError("annotation with an invalid RLE")
    return Shape({"size": size, "counts": counts}, (x, y, x + w, y + h), area)
