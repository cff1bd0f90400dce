"""What gives a defect away, pixel by pixel, where a data set tells items and openings apart."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.armbench_defects import OPENED, DefectView

__all__ = ["CLUES", "clues_of", "read_clues"]

CLUES = ("seam between items", "opening")

_SEAM_WIDTH = 5


def read_clues(view: DefectView, height: int, width: int) -> NDArray[np.uint8] | None:
    """Clues of an image, see :func:`clues_of`; None where its parts are not known, or not for this size."""
    if view.parts is None:
        return None
    parts = cv2.imread(str(view.parts), cv2.IMREAD_GRAYSCALE)
    return (
        clues_of(np.asarray(parts, np.uint8))
        if parts is not None and parts.shape == (height, width)
        else None
    )


def clues_of(parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where two items meet, and where an opening shows.

    Args:
        parts: uint8 ``[H, W]``, see :data:`mca_perception.datasets.armbench_defects.PARTS`.

    Returns:
        uint8 ``[H, W, 3]``, 255 where there is one: :data:`CLUES`, and an empty channel.
    """
    opening = parts == OPENED
    items = np.where(opening, 0, parts)
    around = np.ones((_SEAM_WIDTH, _SEAM_WIDTH), np.uint8)
    highest = cv2.dilate(items, around)
    lowest = cv2.erode(np.where(items == 0, OPENED, items), around)
    seam = (items > 0) & (highest != lowest)
    return np.stack([seam, opening, np.zeros_like(seam)], axis=-1).astype(np.uint8) * 255
