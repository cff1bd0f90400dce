"""What the defect head looks at: the picked object, cut out as identification cuts it. NumPy and OpenCV only."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mca_perception.identification.crops import crop_object, mask_box


class CropSettings(Protocol):
    """How crops are made; see the attributes of the same names of a recipe or a manifest."""

    @property
    def crop_size(self) -> int: ...  # noqa: D102
    @property
    def margin(self) -> float: ...  # noqa: D102
    @property
    def background(self) -> int: ...  # noqa: D102
    @property
    def masked(self) -> bool: ...  # noqa: D102


def crop_pick(
    image: NDArray[np.uint8], mask: NDArray[np.bool_] | None, settings: CropSettings
) -> NDArray[np.uint8]:
    """Cut out what was picked; the whole image, letterboxed, when its outline is not known.

    Args:
        image: uint8 ``[H, W, 3]`` RGB.
        mask: bool ``[H, W]`` with at least one pixel, or None.
        settings: size, margin, background and whether the surroundings are masked.

    Returns:
        uint8 ``[S, S, 3]``.
    """
    size, background = settings.crop_size, settings.background
    if mask is None:
        box = np.array([0, 0, image.shape[1], image.shape[0]], np.float32)
        return crop_object(image, box, size=size, margin=0.0, background=background)
    shown = mask if settings.masked else None
    return crop_object(
        image, mask_box(mask), size=size, mask=shown, margin=settings.margin, background=background
    )
