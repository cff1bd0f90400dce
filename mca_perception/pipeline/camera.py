"""A calibrated camera: its matrix, its distortion, and the ray through each pixel."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import CameraError
from mca_perception.geometry import MAX_PIXELS, Size

__all__ = ["DISTORTION_MODELS", "Camera"]

DISTORTION_MODELS = {"plumb_bob": (0, 4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (0, 4)}
"""Numbers of coefficients by distortion model of ``sensor_msgs/CameraInfo``."""


@dataclass(frozen=True, eq=False)
class Camera:
    """Intrinsics as in ``sensor_msgs/CameraInfo``; x points right, y down, z forward.

    Attributes:
        image_size: ``(height, width)`` in pixels.
        matrix: float64 ``[3, 3]``, with the principal point in coordinates of pixel centres, as ROS and OpenCV have it.
        distortion: coefficients; none for a rectified image.
        model: a key of :data:`DISTORTION_MODELS`.
    """

    image_size: Size
    matrix: NDArray[np.float64]
    distortion: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    model: str = "plumb_bob"

    def __post_init__(self) -> None:
        height, width = self.image_size
        if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
            raise CameraError(f"camera image is {width} x {height} pixels; calibrate the camera again")
        matrix = np.asarray(self.matrix, np.float64)
        usable = matrix.shape == (3, 3) and np.isfinite(matrix).all() and min(matrix[0, 0], matrix[1, 1]) > 0
        if not usable:
            raise CameraError("camera matrix has no positive focal length; the camera is not calibrated")
        if self.model not in DISTORTION_MODELS:
            raise CameraError(
                f"distortion model {self.model!r} is not supported; use one of {', '.join(DISTORTION_MODELS)}"
            )
        coefficients = np.asarray(self.distortion, np.float64).ravel()
        if not np.isfinite(coefficients).all():
            raise CameraError("distortion coefficients are not finite; calibrate the camera again")
        if coefficients.any() and len(coefficients) not in DISTORTION_MODELS[self.model]:
            raise CameraError(
                f"{self.model} takes {' or '.join(map(str, DISTORTION_MODELS[self.model]))} coefficients, "
                f"got {len(coefficients)}"
            )
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "distortion", coefficients if coefficients.any() else np.zeros(0))

    @property
    def is_distorted(self) -> bool:
        """Whether straight lines are bent in the image."""
        return bool(len(self.distortion))

    @cached_property
    def rays(self) -> NDArray[np.float32]:
        """Float32 ``[H, W, 2]``: x and y, at z = 1, of the ray through the centre of each pixel, without distortion."""
        height, width = self.image_size
        if not self.is_distorted:
            (fx, _, cx), (_, fy, cy) = self.matrix[:2]
            x = (np.arange(width, dtype=np.float64) - cx) / fx
            y = (np.arange(height, dtype=np.float64) - cy) / fy
            return np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)
        rows = [self._undistorted_row(row) for row in range(height)]
        return np.stack(rows).astype(np.float32)

    def _undistorted_row(self, row: int) -> NDArray[np.float64]:
        width = self.image_size[1]
        pixels = np.stack([np.arange(width, dtype=np.float64), np.full(width, float(row))], axis=-1)[None]
        if self.model == "equidistant":
            return np.asarray(cv2.fisheye.undistortPoints(pixels, self.matrix, self.distortion)[0])
        return np.asarray(cv2.undistortPoints(pixels, self.matrix, self.distortion).reshape(-1, 2))

    def rectified(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image without distortion, for a camera of the same matrix; uint8 ``[H, W, C]``."""
        if not self.is_distorted:
            return image
        if self.model == "equidistant":
            return np.asarray(
                cv2.fisheye.undistortImage(image, self.matrix, self.distortion, Knew=self.matrix), np.uint8
            )
        return np.asarray(cv2.undistort(image, self.matrix, self.distortion), np.uint8)
