"""Exact masks to COCO polygons."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

_SCALE = 2
# Simplification in enlarged pixels by outline length over area (1/px): the thinner a part, the more each corner
# counts towards the IoU.
_TOLERANCES = ((0.05, 1.0), (0.18, 0.75), (math.inf, 0.0))
_MAX_CUTS = 8
# Area of a two-pixel hole in enlarged pixels.
_SMALLEST_HOLE = 8


def trace(mask: NDArray[np.bool_], x: int = 0, y: int = 0) -> list[list[float]]:
    """Trace a mask into COCO polygons ``[x1, y1, x2, y2, ...]``, px, shifted by (x, y).

    ``cv2.findContours`` runs through pixel centres, which would lose half a pixel all around; the mask is
    therefore enlarged first. COCO polygons know no holes: a part with a hole is cut in two through the hole.
    """
    polygons = _trace(mask.astype(np.uint8), 0)
    return [np.round(polygon + np.array([x, y]), 2).ravel().tolist() for polygon in polygons]


def _trace(mask: NDArray[np.uint8], depth: int) -> list[NDArray[np.float64]]:
    size = (mask.shape[1] * _SCALE, mask.shape[0] * _SCALE)
    enlarged = np.pad(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), 1)
    contours, hierarchy = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    outer = hierarchy[0][:, 3] < 0
    holes = [contour for contour, is_outer in zip(contours, outer, strict=True) if not is_outer]
    hole = max(holes, key=cv2.contourArea, default=None)
    if hole is not None and depth < _MAX_CUTS and cv2.contourArea(hole) > _SMALLEST_HOLE:
        column = int((hole[:, 0, 0].min() + hole[:, 0, 0].max() - 2) / (2 * _SCALE))
        left, right = (np.ascontiguousarray(part) for part in (mask[:, :column], mask[:, column:]))
        moved = [np.add(polygon, (column, 0)) for polygon in _trace(right, depth + 1)]
        return _trace(left, depth + 1) + moved
    outlines = [contour for contour, is_outer in zip(contours, outer, strict=True) if is_outer]
    length = sum(cv2.arcLength(contour, True) for contour in outlines) / _SCALE
    thinness = length / float(np.count_nonzero(mask))
    tolerance = next(value for limit, value in _TOLERANCES if thinness < limit)
    simple = [cv2.approxPolyDP(contour, tolerance, True)[:, 0].astype(np.float64) for contour in outlines]
    return [(points - 0.5) / _SCALE for points in simple if len(points) >= 3]
