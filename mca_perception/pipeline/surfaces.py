"""The visible surface of each object, measured in an aligned depth image: points, centroid, oriented box."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import CameraError
from mca_perception.objects import Objects
from mca_perception.pipeline.camera import Camera

__all__ = ["OrientedBox", "Surface", "measure_surfaces", "oriented_box"]

MIN_POINTS = 12
MAX_BOX_POINTS = 4096
"""A box is fitted to at most so many points of a surface."""

_OUTLIER_DEVIATIONS = 3.0
_OUTLIER_FLOOR_M = 0.01
_MAD_TO_DEVIATION = 1.4826


@dataclass(frozen=True)
class OrientedBox:
    """A box in space, in metres.

    Attributes:
        centre: ``[3]``.
        axes: ``[3, 3]`` rotation; its columns are the directions of the box's x, y and z axis. z is the normal of the
            surface, pointing away from the camera; x is the longer side.
        size: ``[3]`` along these axes.
    """

    centre: NDArray[np.float64]
    axes: NDArray[np.float64]
    size: NDArray[np.float64]

    @property
    def quaternion(self) -> tuple[float, float, float, float]:
        """The rotation as x, y, z, w."""
        m = self.axes
        # The largest of the four is computed first: dividing by a small one would lose digits.
        squares = np.array([m[0, 0], m[1, 1], m[2, 2], m.trace()])
        i = int(squares.argmax())
        if i == 3:
            q = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1 + m.trace()])
        else:
            j, k = (i + 1) % 3, (i + 2) % 3
            q = np.empty(4)
            q[i], q[j], q[k] = 1 + m[i, i] - m[j, j] - m[k, k], m[j, i] + m[i, j], m[k, i] + m[i, k]
            q[3] = m[k, j] - m[j, k]
        x, y, z, w = (float(value) for value in q / np.linalg.norm(q))
        return x, y, z, w


@dataclass(frozen=True)
class Surface:
    """What a depth image shows of one object, in metres in the camera's frame.

    Attributes:
        points: float32 ``[P, 3]``.
        pixels: int64 ``[P]``, the flat index of each point's pixel.
        centroid: ``[3]`` mean of the points.
        box: around the points.
    """

    points: NDArray[np.float32]
    pixels: NDArray[np.int64]
    centroid: NDArray[np.float32]
    box: OrientedBox


def measure_surfaces(
    objects: Objects, depth: NDArray[np.float32], camera: Camera, *, nearest_m: float, farthest_m: float
) -> list[Surface | None]:
    """Measure every object.

    Args:
        objects: with masks.
        depth: float32 ``[H, W]`` metres along the optical axis, aligned with the image; not finite or 0 where unknown.
        camera: of the image.
        nearest_m: depths below it do not count.
        farthest_m: depths above it do not count.

    Returns:
        One surface per object; None where fewer than 12 of its pixels have a depth.

    Raises:
        CameraError: sizes of objects, depth and camera differ.
    """
    sizes = {"depth image": depth.shape, "camera_info": camera.image_size}
    for name, size in sizes.items():
        if size != objects.image_size:
            (height, width), (h, w) = objects.image_size, size
            raise CameraError(
                f"{name} is {w} x {h}, the image {width} x {height}; publish depth aligned to the image"
            )
    if objects.instance_mask is None:
        raise CameraError("objects without masks cannot be measured")
    return [
        _measure(objects, i, objects.instance_mask, depth, camera, nearest_m, farthest_m)
        for i in range(len(objects))
    ]


def _measure(
    objects: Objects,
    i: int,
    mask: NDArray[np.uint16],
    depth: NDArray[np.float32],
    camera: Camera,
    nearest_m: float,
    farthest_m: float,
) -> Surface | None:
    x1, y1, x2, y2 = objects.boxes[i]
    window = (slice(int(y1), int(np.ceil(y2))), slice(int(x1), int(np.ceil(x2))))
    z = depth[window]
    with np.errstate(invalid="ignore"):
        valid = (mask[window] == objects.instance_ids[i]) & (z >= nearest_m) & (z <= farthest_m)
    rows, columns = np.nonzero(valid)
    if len(rows) < MIN_POINTS:
        return None
    kept = _inliers(z[rows, columns])
    rows, columns = rows[kept] + window[0].start, columns[kept] + window[1].start
    distances = depth[rows, columns][:, None]
    points = np.concatenate([camera.rays[rows, columns] * distances, distances], axis=1).astype(np.float32)
    return Surface(
        points,
        np.asarray(rows * depth.shape[1] + columns, np.int64),
        points.mean(axis=0, dtype=np.float64).astype(np.float32),
        oriented_box(points),
    )


def _inliers(z: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Depths near the median: pixels at an object's edge often mix it with what is behind it."""
    middle = np.median(z)
    distances = np.abs(z - middle)
    deviation = _MAD_TO_DEVIATION * float(np.median(distances))
    return np.asarray(distances <= max(_OUTLIER_DEVIATIONS * deviation, _OUTLIER_FLOOR_M), np.bool_)


def oriented_box(points: NDArray[np.float32]) -> OrientedBox:
    """The box of least base area around points ``[P, 3]``, its base in the plane that fits them best."""
    step = -(-len(points) // MAX_BOX_POINTS)
    sample = points[::step].astype(np.float64)
    mean = sample.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov((sample - mean).T))
    normal, first = directions[:, 0], directions[:, 2]
    if normal[2] < 0:
        normal = -normal
    second = np.cross(normal, first)
    plane = np.stack([(sample - mean) @ first, (sample - mean) @ second], axis=1)
    (u, v), (length, width), degrees = cv2.minAreaRect(plane.astype(np.float32))
    angle = np.deg2rad(degrees + (90.0 if width > length else 0.0))
    x_axis = np.cos(angle) * first + np.sin(angle) * second
    heights = (sample - mean) @ normal
    low, high = float(heights.min()), float(heights.max())
    return OrientedBox(
        centre=mean + u * first + v * second + (low + high) / 2 * normal,
        axes=np.stack([x_axis, np.cross(normal, x_axis), normal], axis=1),
        size=np.array([max(length, width), min(length, width), high - low]),
    )
