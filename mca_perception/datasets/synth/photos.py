"""Products cut out of catalogue photos taken on a plain background."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.images import image_size
from mca_perception.datasets.synth.shapes import Surface
from mca_perception.datasets.synth.sheets import SheetModel, height_levels
from mca_perception.datasets.synth.textures import Field, Image
from mca_perception.errors import DatasetError, InvalidImageError
from mca_perception.geometry import MAX_PIXELS

MAX_PHOTOS = 100_000
MAX_PHOTO_BYTES = 50_000_000
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_WORK_SIDE = 288
_PLAIN_SPREAD = 26.0
_CLEAR_DIFFERENCE, _SLIGHT_DIFFERENCE = 14, 3
_HALO = 7


@dataclass(frozen=True)
class Photo:
    """Where a product's photo lies and the aspect (width / height) of its cut-out."""

    product_id: str
    path: Path
    aspect: float


def read_photo(path: Path) -> Image:
    """Photo as RGB or RGBA uint8, longest side 288 px.

    Raises:
        DatasetError: unreadable, over 50 MB or over 50 megapixels.
    """
    if path.stat().st_size > MAX_PHOTO_BYTES:
        raise DatasetError(f"file larger than {MAX_PHOTO_BYTES // 1_000_000} MB")
    try:
        height, width = image_size(path)
    except InvalidImageError as error:
        raise DatasetError("not a readable image") from error
    if height * width > MAX_PIXELS:
        raise DatasetError(f"more than {MAX_PIXELS // 1_000_000} megapixels")
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint8:
        raise DatasetError("not a readable 8-bit image")
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    code = cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB
    image = cv2.cvtColor(image, code)
    factor = _WORK_SIDE / max(image.shape[:2])
    if factor < 1:
        size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(image, np.uint8)


def cut_out(image: Image) -> Image:
    """Foreground of a pack-shot as RGBA, cropped tight.

    An alpha channel is trusted; otherwise the plain background is flooded from the border.

    Raises:
        DatasetError: the message is the reason: too small, background not plain, no foreground, or no border.
    """
    height, width = image.shape[:2]
    if min(height, width) < 24:
        raise DatasetError("smaller than 24 px")
    if image.shape[2] == 4 and image[:, :, 3].min() < 128:
        alpha = image[:, :, 3]
    else:
        alpha = _plain_background_alpha(image[:, :, :3])
    share = float((alpha > 127).mean())
    if share < 0.04:
        raise DatasetError("no foreground found")
    solid = alpha > 127
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


def _plain_background_alpha(image: Image) -> Image:
    border = np.concatenate(
        [
            image[:3].reshape(-1, 3),
            image[-3:].reshape(-1, 3),
            image[:, :3].reshape(-1, 3),
            image[:, -3:].reshape(-1, 3),
        ]
    )
    plain = np.median(border, axis=0)
    off = np.abs(border.astype(np.float32) - plain).max(1)
    if float((off > _PLAIN_SPREAD).mean()) > 0.25:
        raise DatasetError("background not plain")
    difference = np.abs(image.astype(np.float32) - plain).max(2)
    foreground = _enclosed(difference > _CLEAR_DIFFERENCE)
    # White packs on white differ from it only slightly, but so does the noise that JPEG leaves around
    # any object. What differs slightly counts only well inside of its own outline.
    halo = np.ones((2 * _HALO + 1, 2 * _HALO + 1), np.uint8)
    foreground |= np.asarray(cv2.erode(_enclosed(difference > _SLIGHT_DIFFERENCE), halo), np.uint8)
    foreground = np.asarray(cv2.morphologyEx(foreground, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
    count, components, stats, _ = cv2.connectedComponentsWithStats(foreground)
    if count < 2:
        raise DatasetError("no foreground found")
    areas = stats[1:, cv2.CC_STAT_AREA]
    keep = np.flatnonzero(areas >= areas.max() * 0.08) + 1
    foreground = np.isin(components, keep).astype(np.uint8)
    if float(foreground.mean()) > 0.97:
        raise DatasetError("foreground fills the photo")
    smooth = cv2.GaussianBlur(foreground.astype(np.float32), (0, 0), 1.2)
    return np.asarray(np.clip((smooth - 0.55) / 0.3, 0, 1) * 255, np.uint8)


def _enclosed(different: NDArray[np.bool_]) -> Image:
    """1 where the background, flooded from the border, does not reach."""
    flooded = np.pad(different.astype(np.uint8), 1)
    cv2.floodFill(flooded, np.zeros((flooded.shape[0] + 2, flooded.shape[1] + 2), np.uint8), (0, 0), 2)
    return np.asarray(flooded[1:-1, 1:-1] != 2, np.uint8)


def load_photos(folder: Path) -> tuple[list[Photo], Counter[str]]:
    """Usable product photos below ``folder``, sorted by path, and the counted reasons why others are not.

    The product id is the file's name without suffix, or its relative path joined by ``_`` where names repeat.

    Raises:
        DatasetError: folder missing, more than 100,000 photos, or no usable one.
    """
    if not folder.is_dir():
        raise DatasetError(f"--catalog {folder}: not a folder; give a folder of .jpg or .png product photos")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if len(paths) > MAX_PHOTOS:
        raise DatasetError(
            f"--catalog {folder}: {len(paths)} photos, the limit is {MAX_PHOTOS:,}; split the folder"
        )
    stems = Counter(path.stem for path in paths)
    photos: dict[str, Photo] = {}
    refused: Counter[str] = Counter()
    for path in paths:
        parts = path.relative_to(folder).with_suffix("").parts
        product_id = path.stem if stems[path.stem] == 1 else "_".join(parts)
        try:
            if product_id.startswith(".") or product_id in photos:
                raise DatasetError("name is hidden or already taken")
            cut = cut_out(read_photo(path))
        except DatasetError as error:
            refused[str(error)] += 1
            continue
        photos[product_id] = Photo(product_id, path, cut.shape[1] / cut.shape[0])
    if not photos:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(refused.items()))
        raise DatasetError(
            f"--catalog {folder}: no usable product photo ({reasons or 'no .jpg or .png file'}); "
            "give photos of single products on a plain background"
        )
    return list(photos.values()), refused


def photo_model(photo: Photo, size: tuple[float, float, float]) -> SheetModel:
    """Relief model of a photo: slightly raised in the middle; its back shows the mirrored photo."""
    rgba = cut_out(read_photo(photo.path))
    surface = Surface.of(rgba)
    inside = cv2.distanceTransform((rgba[:, :, 3] > 127).astype(np.uint8), cv2.DIST_L2, 3)
    height: Field = np.sqrt(np.clip(inside / max(float(inside.max()), 1.0), 0, 1)) * np.float32(size[2] * 0.5)
    return SheetModel(
        size,
        surface,
        Surface.of(np.ascontiguousarray(rgba[:, ::-1])),
        height_levels(height, surface),
        0.1,
        0.0,
    )
