"""Pinhole camera, poses and rendered sprites.

World frame, in centimetres: X right, Y towards the image bottom, Z away from the camera into the floor
(floor at Z = 0, things above it have negative Z). Camera frame: the usual x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def rotation(axis: tuple[float, float, float] | Vector, angle: float) -> Matrix:
    """Rotation matrix about ``axis`` by ``angle`` radians."""
    unit = np.asarray(axis, np.float64)
    matrix, _ = cv2.Rodrigues(unit / np.linalg.norm(unit) * angle)
    return np.asarray(matrix, np.float64)


@dataclass(frozen=True)
class Camera:
    """Camera at ``position`` (world cm) with ``rotation`` (world to camera) and focal length in pixels."""

    focal: float
    centre: tuple[float, float]
    position: Vector
    rotation: Matrix

    def to_camera(self, points: Vector) -> Vector:
        """World points ``[N, 3]`` to the camera frame."""
        return np.asarray((np.atleast_2d(points) - self.position) @ self.rotation.T)

    def project(self, points: Vector) -> Vector:
        """World points ``[N, 3]`` to pixels ``[N, 2]``."""
        return project(self.to_camera(points), self)

    def pose(self, orientation: Matrix, position: Vector) -> Pose:
        """Pose in the camera frame of an object given in the world frame."""
        return Pose(self.rotation @ orientation, self.to_camera(position)[0])


def project(points: Vector, camera: Camera) -> Vector:
    """Camera-frame points ``[N, 3]`` to pixels ``[N, 2]``."""
    depth = np.maximum(points[:, 2:], 1e-3)
    return np.asarray(points[:, :2] / depth * camera.focal + np.asarray(camera.centre))


@dataclass(frozen=True)
class Pose:
    """Object pose in the camera frame: rotation (object to camera) and position (cm)."""

    rotation: Matrix
    position: Vector


@dataclass(frozen=True)
class Sprite:
    """Rendered object: straight-alpha RGBA uint8 ``[h, w, 4]`` whose top left pixel lies at image (x, y)."""

    rgba: NDArray[np.uint8]
    x: int
    y: int


def bounds(points: Vector, margin: int = 2) -> tuple[int, int, int, int]:
    """Integer x, y, width, height of a rectangle around ``points`` with a margin."""
    low = np.floor(points.min(0)).astype(int) - margin
    high = np.ceil(points.max(0)).astype(int) + margin
    return int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1])
