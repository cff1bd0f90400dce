"""Images as the network sees them: plain, and as random views. NumPy and OpenCV only, but for AutoAugment."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.classification.auto_augment import auto_augmented
from mca_perception.classification.recipe import ViewAugmentation
from mca_perception.identification.crops import BACKGROUND, crop_object

__all__ = ["changed_view", "plain_view"]

Image = NDArray[np.uint8]


def plain_view(image: Image, size: int) -> Image:
    """The whole image in a square, its aspect kept; what a bundle's embedding sees of an image without boxes.

    Args:
        image: uint8 ``[H, W, 3]`` RGB.
        size: side of the result in pixels.
    """
    height, width = image.shape[:2]
    return crop_object(image, np.array([0, 0, width, height], np.float32), size=size, margin=0.0)


def changed_view(image: Image, size: int, settings: ViewAugmentation, rng: np.random.Generator) -> Image:
    """A random view: part of the image, turned and perhaps mirrored, with other colours.

    Args:
        image: uint8 ``[H, W, 3]`` RGB.
        size: side of the result in pixels.
        settings: strengths.
        rng: of all draws.
    """
    # So large that the smallest part has the resolution of the result: less would blur, more would alias.
    side = round(size / settings.smallest_crop**0.5)
    square = plain_view(image, side)
    part = side * float(rng.uniform(settings.smallest_crop, 1.0)) ** 0.5
    centre = rng.uniform(part / 2, side - part / 2, 2) if part < side else np.full(2, side / 2)
    angle = float(rng.uniform(-settings.rotation, settings.rotation))
    turn = cv2.getRotationMatrix2D((float(centre[0]), float(centre[1])), angle, size / part)
    move = np.eye(3)
    move[:2, 2] = size / 2 - centre
    move = move[:2] @ np.vstack([turn, (0, 0, 1)])
    view = cv2.warpAffine(square, move, (size, size), flags=cv2.INTER_LINEAR, borderValue=(BACKGROUND,) * 3)
    if rng.random() < settings.flip:
        view = view[:, ::-1]
    recoloured = _recoloured(np.asarray(view, np.uint8), settings.colour, rng)
    if settings.auto_augment is None:
        return recoloured
    return auto_augmented(recoloured, settings.auto_augment, rng)


def _recoloured(view: Image, strength: float, rng: np.random.Generator) -> Image:
    """Random brightness, contrast about the mean, and saturation."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    values = view.astype(np.float32) * brightness
    values = (values - values.mean()) * contrast + values.mean()
    grey = values.mean(axis=2, keepdims=True)
    return np.clip((values - grey) * saturation + grey, 0, 255).astype(np.uint8)
