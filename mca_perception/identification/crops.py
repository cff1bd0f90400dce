"""Cut objects and reference photos to the square input of the identification pass. NumPy and OpenCV only.

Training, gallery import and the robot's pipeline all go through these two functions, so that a query looks the same
wherever it is made.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

BACKGROUND = 127
# A pixel counts as background when every channel is within this distance of the corner the flood started in.
FLOOD_TOLERANCE = 10
# A white product on white is partly flooded too: below this share of its convex hull, the hull is taken.
MIN_SOLIDITY = 0.5
# A reference photo is taken as a pack-shot on a plain background when the background found has a share of the image
# between these bounds; otherwise the whole photo is used.
PLAIN_BACKGROUND_SHARE = (0.03, 0.97)
MAX_REFERENCE_SIDE = 512


def crop_object(
    image: NDArray[np.uint8],
    box: NDArray[np.float32],
    *,
    size: int,
    mask: NDArray[np.bool_] | None = None,
    margin: float = 0.1,
    background: int = BACKGROUND,
) -> NDArray[np.uint8]:
    """Square crop around an object, its aspect kept, everything that is not the object set to a flat grey.

    Args:
        image: ``[H, W, 3]`` uint8.
        box: xyxy in pixels of ``image``; may reach over its border.
        size: side of the result in pixels.
        mask: ``[H, W]`` bool of the object; without it the surroundings stay.
        margin: fraction added to the longer side of the box.
        background: grey value of masked and outside pixels.

    Returns:
        ``[size, size, 3]`` uint8.
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = (float(value) for value in box)
    side = max(x2 - x1, y2 - y1, 1.0) * (1.0 + margin)
    left, top = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2
    # Only the part of the image under the crop is masked and resized.
    inner_left, inner_top = max(int(np.floor(left)), 0), max(int(np.floor(top)), 0)
    inner_right = min(int(np.ceil(left + side)), width)
    inner_bottom = min(int(np.ceil(top + side)), height)
    canvas = np.full((size, size, 3), background, np.uint8)
    if inner_right <= inner_left or inner_bottom <= inner_top:
        return canvas
    patch = image[inner_top:inner_bottom, inner_left:inner_right]
    if mask is not None:
        inside = mask[inner_top:inner_bottom, inner_left:inner_right]
        masked = np.full(patch.shape, background, np.uint8)
        patch = np.asarray(cv2.copyTo(patch, inside.astype(np.uint8), masked), np.uint8)
    scale = size / side
    if scale < 0.5:  # average before sampling, or small print aliases
        shrunk = (max(round(patch.shape[1] * scale), 1), max(round(patch.shape[0] * scale), 1))
        factor_x, factor_y = shrunk[0] / patch.shape[1], shrunk[1] / patch.shape[0]
        patch = np.asarray(cv2.resize(patch, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
    else:
        factor_x = factor_y = 1.0
    # Pixel centres: source u maps to (u + 0.5) * k - 0.5 + offset.
    kx, ky = scale / factor_x, scale / factor_y
    offset_x, offset_y = (inner_left - left) * scale, (inner_top - top) * scale
    transform = np.array([[kx, 0, offset_x + 0.5 * kx - 0.5], [0, ky, offset_y + 0.5 * ky - 0.5]], np.float32)
    cv2.warpAffine(
        np.ascontiguousarray(patch),
        transform,
        (size, size),
        dst=canvas,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(background,) * 3,
    )
    return canvas


def mask_box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Tight xyxy box, in pixels, around a ``[H, W]`` mask that is not empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def foreground_mask(image: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """Mask of the product in a pack-shot: everything that a flood from the border does not reach.

    Returns:
        ``[H, W]`` bool, or ``None`` when the photo has no plain background.
    """
    height, width = image.shape[:2]
    flooded = np.zeros((height + 2, width + 2), np.uint8)
    flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (255 << 8)
    tolerance = (FLOOD_TOLERANCE,) * 3
    for seed in ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)):
        if not flooded[seed[1] + 1, seed[0] + 1]:
            cv2.floodFill(image, flooded, seed, 0, tolerance, tolerance, flags)
    kernel = np.ones((3, 3), np.uint8)
    background = cv2.dilate(cv2.morphologyEx(flooded[1:-1, 1:-1], cv2.MORPH_OPEN, kernel), kernel) > 0
    if background.all():
        return None
    mask = _solid(~background)
    return mask if PLAIN_BACKGROUND_SHARE[0] <= 1 - mask.mean() <= PLAIN_BACKGROUND_SHARE[1] else None


def _solid(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    points = np.argwhere(mask)[:, ::-1].astype(np.int32)
    hull = np.zeros(mask.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
    return mask if mask.sum() >= MIN_SOLIDITY * hull.sum() else hull > 0


def crop_reference(
    image: NDArray[np.uint8], *, size: int, margin: float = 0.1, background: int = BACKGROUND
) -> NDArray[np.uint8]:
    """Square crop of a reference photo; a plain background is replaced by grey and the product fills the frame.

    Args:
        image: ``[H, W, 3]`` uint8.
        size: side of the result in pixels.
        margin: fraction added to the longer side of the product's box.
        background: grey value that takes the background's place.

    Returns:
        ``[size, size, 3]`` uint8.
    """
    longest = max(image.shape[:2])
    if longest > MAX_REFERENCE_SIDE:
        scale = MAX_REFERENCE_SIDE / longest
        image = np.asarray(
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
        )
    mask = foreground_mask(image)
    if mask is None:
        box = np.array([0, 0, image.shape[1], image.shape[0]], np.float32)
        return crop_object(image, box, size=size, margin=0.0, background=background)
    return crop_object(image, mask_box(mask), size=size, mask=mask, margin=margin, background=background)
