"""Heat maps as pictures."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["heat_overlay", "place_heat"]

_STRENGTH = 0.55


def heat_overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay a heat map ``[H, W]`` 0..1 over an image uint8 ``[H, W, 3]``: the hotter, the redder."""
    colours = cv2.cvtColor(
        cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB
    )
    share = (_STRENGTH * heat)[..., None]
    return np.asarray(image * (1 - share) + colours * share, np.uint8)


def place_heat(
    heat: NDArray[np.float32], box: NDArray[np.float32], margin: float, image_size: tuple[int, int]
) -> NDArray[np.float32]:
    """Put the heat map of a crop back to where the crop was cut out.

    Args:
        heat: ``[S, S]`` of a crop.
        box: ``[4]`` xyxy in pixels of the image, around which the crop was cut.
        margin: fraction of the box' longer side that the crop showed beside it.
        image_size: ``(height, width)``.

    Returns:
        float32 ``[H, W]``, 0 outside of the crop.
    """
    x1, y1, x2, y2 = box.tolist()
    side = max(x2 - x1, y2 - y1) * (1 + margin)
    scale = side / heat.shape[0]
    left, top = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2
    # From pixel centres of the crop to pixel centres of the image.
    move = np.array([[scale, 0, left + (scale - 1) / 2], [0, scale, top + (scale - 1) / 2]], np.float32)
    return np.asarray(cv2.warpAffine(heat, move, image_size[::-1], flags=cv2.INTER_LINEAR), np.float32)
