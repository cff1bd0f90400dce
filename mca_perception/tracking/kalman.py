"""Where a box will be in the next frame: a Kalman filter with constant velocity (Bewley et al. 2016, SORT)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["BoxFilter"]

# Standard deviations relative to the box's height, as in ByteTrack's public implementation.
_POSITION, _VELOCITY = 1 / 20, 1 / 160
_ASPECT, _ASPECT_VELOCITY = 1e-2, 1e-5
_MEASURED_ASPECT = 1e-1


class BoxFilter:
    """State of one box: centre x, centre y, aspect ratio, height in pixels, and their change per frame."""

    def __init__(self, box: NDArray[np.float32]) -> None:
        """Start at rest with a box ``[4]`` xyxy."""
        self._mean = np.concatenate([_measurement(box), np.zeros(4)])
        height = self._mean[3]
        deviations = [
            *(2 * _POSITION * height, 2 * _POSITION * height, _ASPECT, 2 * _POSITION * height),
            *(10 * _VELOCITY * height, 10 * _VELOCITY * height, _ASPECT_VELOCITY, 10 * _VELOCITY * height),
        ]
        self._covariance = np.diag(np.square(deviations))

    @property
    def box(self) -> NDArray[np.float32]:
        """The box ``[4]`` xyxy in pixels."""
        x, y, aspect, height = self._mean[:4]
        centre, half = np.array([x, y]), np.array([aspect * height, height]) / 2
        return np.concatenate([centre - half, centre + half]).astype(np.float32)

    def predict(self) -> None:
        """Move on by one frame."""
        height = self._mean[3]
        deviations = [
            *(_POSITION * height, _POSITION * height, _ASPECT, _POSITION * height),
            *(_VELOCITY * height, _VELOCITY * height, _ASPECT_VELOCITY, _VELOCITY * height),
        ]
        self._mean = _MOTION @ self._mean
        self._mean[2:4] = np.maximum(self._mean[2:4], 1e-3)
        self._covariance = _MOTION @ self._covariance @ _MOTION.T + np.diag(np.square(deviations))

    def update(self, box: NDArray[np.float32]) -> None:
        """Take in the box ``[4]`` xyxy that was seen in this frame."""
        height = self._mean[3]
        noise = np.diag(
            np.square([_POSITION * height, _POSITION * height, _MEASURED_ASPECT, _POSITION * height])
        )
        innovation = self._covariance[:4, :4] + noise
        gain = np.linalg.solve(innovation, self._covariance[:4]).T
        self._mean = self._mean + gain @ (_measurement(box) - self._mean[:4])
        self._covariance = self._covariance - gain @ innovation @ gain.T


_MOTION = np.eye(8) + np.eye(8, k=4)


def _measurement(box: NDArray[np.float32]) -> NDArray[np.float64]:
    x1, y1, x2, y2 = (float(value) for value in box)
    width, height = max(x2 - x1, 1e-3), max(y2 - y1, 1e-3)
    return np.array([(x1 + x2) / 2, (y1 + y2) / 2, width / height, height])
