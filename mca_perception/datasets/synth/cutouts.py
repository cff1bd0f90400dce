"""Products cut out of their photos: by an alpha channel, against a plain background, or by GrabCut."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.synth.textures import Field, Image
from mca_perception.errors import DatasetError

NOT_PLAIN = "background not plain"
NO_FOREGROUND = "no foreground found"
_MIN_SIDE, _MIN_SHARE, _MAX_SHARE = 24, 0.04, 0.97
_PLAIN_SPREAD, _MAX_UNPLAIN = 26.0, 0.25
_CLEAR_DIFFERENCE, _SLIGHT_DIFFERENCE = 14, 3
_HALO = 7
# Share of the largest part that another part needs to belong to the product.
_PART_SHARE = 0.08
# A shadow is a smooth, neutral darkening of the background; taking one off makes an outline clearly more convex.
_SHADOW_STEP, _SHADOW_TINT, _SHADOW_DARKEST = 2, 0.035, 0.55
_SHADOW_GAIN = 0.03
_GRABCUT_ROUNDS = 4
_GRABCUT_MAX_SHARE, _GRABCUT_MAX_AT_BORDER = 0.85, 0.1


def cut_out(image: Image) -> Image:
    """Foreground of a product photo as RGBA, cropped tight.

    An alpha channel is trusted. A plain background, evenly lit or with a gradient, is flooded from the border. Of
    other photos GrabCut decides, and only one clear product in the middle is accepted.

    Args:
        image: RGB or RGBA uint8 ``[H, W, 3 or 4]``.

    Raises:
        DatasetError: the message is the reason: too small, background not plain, no foreground, or no border.
    """
    height, width = image.shape[:2]
    if min(height, width) < _MIN_SIDE:
        raise DatasetError(f"smaller than {_MIN_SIDE} px")
    if image.shape[2] == 4 and image[:, :, 3].min() < 128:
        alpha = image[:, :, 3]
    else:
        alpha = _photo_alpha(np.ascontiguousarray(image[:, :, :3]))
    solid = alpha > 127
    if float(solid.mean()) < _MIN_SHARE:
        raise DatasetError(NO_FOREGROUND)
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    rgba = np.dstack([image[:, :, :3], alpha])[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.ascontiguousarray(
        np.pad(rgba, ((2, 2), (2, 2), (0, 0)), mode="edge") * _frame(rgba.shape[0] + 4, rgba.shape[1] + 4)
    )


def _frame(height: int, width: int) -> Image:
    """Multiplier that clears the alpha of a 2 px frame and keeps its colours."""
    keep = np.ones((height, width, 4), np.uint8)
    keep[:2, :, 3] = keep[-2:, :, 3] = keep[:, :2, 3] = keep[:, -2:, 3] = 0
    return keep


def _photo_alpha(image: Image) -> Image:
    background = _background(image)
    foreground = _grabcut(image) if background is None else _flooded(image, background)
    if float(foreground.mean()) > _MAX_SHARE:
        raise DatasetError("foreground fills the photo")
    smooth = cv2.GaussianBlur(foreground.astype(np.float32), (0, 0), 1.2)
    return np.asarray(np.clip((smooth - 0.55) / 0.3, 0, 1) * 255, np.uint8)


def _background(image: Image) -> Field | None:
    """Colour of the background everywhere: one colour or a linear gradient; ``None`` if the border shows neither."""
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    basis = np.stack([np.ones_like(x), x / width - 0.5, y / height - 0.5], -1)
    edge = np.ones((height, width), bool)
    edge[3:-3, 3:-3] = False
    known, colours = basis[edge], image[edge].astype(np.float32)
    plane = np.zeros((3, 3), np.float32)
    plane[0] = np.median(colours, axis=0)
    off = np.abs(colours - plane[0]).max(1)
    # A product may touch the border and tilt a fit: a gradient is sought only where one colour does not do.
    rounds = 0 if float(np.quantile(off, 0.6)) <= _SLIGHT_DIFFERENCE else 3
    for _ in range(rounds):
        near = off <= max(_PLAIN_SPREAD, float(np.quantile(off, 0.6)))
        plane = np.linalg.lstsq(known[near], colours[near], rcond=None)[0]
        off = np.abs(colours - known @ plane).max(1)
    if float((off > _PLAIN_SPREAD).mean()) > _MAX_UNPLAIN:
        return None
    return np.asarray(basis @ plane, np.float32)


def _flooded(image: Image, background: Field) -> Image:
    """What the background, flooded from the border, does not reach: 1 where the product is."""
    difference = np.abs(image.astype(np.float32) - background).max(2)
    clear = _enclosed(difference > _CLEAR_DIFFERENCE) > 0
    # White packs on white differ from it only slightly, but so does the noise that JPEG leaves around any object.
    # What differs slightly counts only well inside of its own outline, from where it grows back.
    reach = np.ones((2 * _HALO + 1, 2 * _HALO + 1), np.uint8)
    core = cv2.erode(_enclosed(difference > _SLIGHT_DIFFERENCE), reach) > 0
    pale = cv2.morphologyEx((core & ~clear).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    even = cv2.medianBlur(np.clip(difference, 0, 255).astype(np.uint8), 5) > _SLIGHT_DIFFERENCE
    foreground = _parts(clear | core | ((cv2.dilate(pale, reach) > 0) & even))
    if not foreground.any():
        raise DatasetError(NO_FOREGROUND)
    lit = _parts((foreground > 0) & ~_shadow(image, background))
    return lit if _convexity(lit) > _convexity(foreground) + _SHADOW_GAIN else foreground


def _parts(foreground: NDArray[np.bool_]) -> Image:
    """1 on the largest part, and on others that are not much smaller."""
    opened = cv2.morphologyEx(foreground.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, components, stats, _ = cv2.connectedComponentsWithStats(opened)
    areas = stats[1:, cv2.CC_STAT_AREA]
    keep = np.flatnonzero(areas >= areas.max(initial=1) * _PART_SHARE) + 1
    return np.isin(components, keep).astype(np.uint8)


def _enclosed(different: NDArray[np.bool_]) -> Image:
    """1 where the background, flooded from the border, does not reach."""
    flooded = np.pad(different.astype(np.uint8), 1)
    cv2.floodFill(flooded, np.zeros((flooded.shape[0] + 2, flooded.shape[1] + 2), np.uint8), (0, 0), 2)
    return np.asarray(flooded[1:-1, 1:-1] != 2, np.uint8)


def _convexity(mask: Image) -> float:
    """Area over the area of the convex hull; 0 for an empty mask."""
    if not mask.any():
        return 0.0
    return float(mask.sum()) / max(float(cv2.contourArea(cv2.convexHull(cv2.findNonZero(mask)))), 1.0)


def _shadow(image: Image, background: Field) -> NDArray[np.bool_]:
    """Background and its cast shadows: neutrally darkened and reached from the border without crossing an edge."""
    ratio = (image.astype(np.float32) + 1) / (np.maximum(background, 0) + 1)
    neutral = (np.ptp(ratio, axis=2) < _SHADOW_TINT) & (ratio.mean(2) > _SHADOW_DARKEST)
    # A frame of background around the photo, so that one flood enters from all sides.
    plain = np.clip(background, 0, 255).astype(np.uint8)
    soft = cv2.copyMakeBorder(plain, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    soft[1:-1, 1:-1] = cv2.GaussianBlur(image, (0, 0), 1.0)
    barrier = np.pad(np.pad((~neutral).astype(np.uint8), 1), 1, constant_values=1)
    step = (_SHADOW_STEP,) * 3
    mode = 4 | cv2.FLOODFILL_MASK_ONLY | (2 << 8)
    cv2.floodFill(soft, barrier, (0, 0), (0, 0, 0), step, step, mode)
    return np.asarray(barrier[2:-2, 2:-2] == 2)


def _grabcut(image: Image) -> Image:
    """Product on a background that is not plain.

    Raises:
        DatasetError: what is found is not one clear product inside of the photo.
    """
    height, width = image.shape[:2]
    margin = max(2, round(0.04 * min(height, width)))
    mask = np.full((height, width), cv2.GC_BGD, np.uint8)
    mask[margin:-margin, margin:-margin] = cv2.GC_PR_FGD
    models = np.zeros((1, 65)), np.zeros((1, 65))
    # GrabCut draws its first colour clusters at random.
    cv2.setRNGSeed(0)
    cv2.grabCut(image, mask, (0, 0, 0, 0), *models, _GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD))
    product = _parts(found)
    inner = product[margin:-margin, margin:-margin]
    border = np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1]])
    share = float(product.mean())
    one_clear_product = (
        _MIN_SHARE <= share <= _GRABCUT_MAX_SHARE
        and float(border.mean()) <= _GRABCUT_MAX_AT_BORDER
        and float(product.sum()) >= 0.9 * float(found.sum())
        and cv2.connectedComponents(product)[0] == 2
        and _convexity(product) > 0.6
    )
    if not one_clear_product:
        raise DatasetError(NOT_PLAIN)
    return np.asarray(cv2.morphologyEx(product, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)), np.uint8)
