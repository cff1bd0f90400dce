"""From a checked image to a network input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.manifest import Preprocessing
from mca_perception.errors import InvalidImageError
from mca_perception.geometry import MAX_PIXELS

__all__ = ["CropFeatures", "check_image", "network_input", "to_tensor"]


class CropFeatures(NamedTuple):
    """Crops as the backbone takes them, and what it makes of them: ``features`` ``[N, 1 + T, D]`` float32."""

    images: NDArray[Any]
    features: NDArray[np.float32]


def check_image(image: Any) -> NDArray[np.uint8]:
    """Check that an image is uint8 ``[H, W, 3]`` and of a size that the library accepts; nothing is copied.

    Raises:
        InvalidImageError: it is not.
    """
    if not isinstance(image, np.ndarray):
        raise InvalidImageError(f"image is a {type(image).__name__}; give uint8 [H, W, 3] in RGB")
    if image.dtype != np.uint8:
        raise InvalidImageError(f"image has dtype {image.dtype}; convert it to uint8 (0 to 255)")
    if image.ndim != 3 or image.shape[2] != 3:
        raise InvalidImageError(f"image has shape {image.shape}; give [H, W, 3] in RGB")
    height, width = image.shape[:2]
    if height == 0 or width == 0:
        raise InvalidImageError(f"image has shape {image.shape}; give at least 1 x 1 pixels")
    if height * width > MAX_PIXELS:
        raise InvalidImageError(f"image has {width} x {height} pixels, over {MAX_PIXELS:,}; reduce it first")
    return image


def to_tensor(images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Normalise a batch: ``(image / 255 - mean) / std`` by channel.

    Args:
        images: uint8 ``[N, H, W, 3]`` RGB.
        mean: of the three channels, on the scale 0 to 1.
        std: of the three channels, on the scale 0 to 1.

    Returns:
        float32 ``[N, 3, H, W]``, contiguous.
    """
    scale = 1.0 / (255.0 * np.asarray(std, dtype=np.float64))
    shift = -np.asarray(mean, dtype=np.float64) / np.asarray(std, dtype=np.float64)
    count, height, width, channels = images.shape
    tensor = np.empty((count, channels, height, width), dtype=np.float32)
    for channel in range(channels):
        plane = tensor[:, channel]
        np.multiply(images[..., channel], np.float32(scale[channel]), out=plane)
        plane += np.float32(shift[channel])
    return tensor


def network_input(images: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[Any]:
    """What graphs take for uint8 ``[N, H, W, 3]``: :func:`to_tensor` of it, or itself where they normalise."""
    return images if preprocessing.fused else to_tensor(images, preprocessing.mean, preprocessing.std)
