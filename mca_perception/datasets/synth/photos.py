"""Products cut out of catalogue photos taken on a plain background."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mca_perception.datasets.images import image_size
from mca_perception.datasets.synth.cutouts import cut_out
from mca_perception.datasets.synth.shapes import Surface
from mca_perception.datasets.synth.sheets import SheetModel, height_levels
from mca_perception.datasets.synth.textures import Field, Image
from mca_perception.errors import DatasetError, InvalidImageError
from mca_perception.geometry import MAX_PIXELS

MAX_PHOTOS = 100_000
MAX_PHOTO_BYTES = 50_000_000
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_WORK_SIDE = 288


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


def load_photos(folder: Path) -> tuple[list[Photo], dict[Path, str]]:
    """Usable product photos below ``folder``, sorted by path, and the reason for each that is refused.

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
    refused: dict[Path, str] = {}
    for path in paths:
        parts = path.relative_to(folder).with_suffix("").parts
        product_id = path.stem if stems[path.stem] == 1 else "_".join(parts)
        try:
            if product_id.startswith(".") or product_id in photos:
                raise DatasetError("name is hidden or already taken")
            cut = cut_out(read_photo(path))
        except DatasetError as error:
            refused[path] = str(error)
            continue
        photos[product_id] = Photo(product_id, path, cut.shape[1] / cut.shape[0])
    if not photos:
        counted = Counter(refused.values())
        reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(counted.items()))
        raise DatasetError(
            f"--catalog {folder}: no usable product photo ({reasons or 'no .jpg or .png file'}); "
            "give photos of single products on a plain background"
        )
    return list(photos.values()), refused


def is_held_back(product_id: str, fraction: float) -> bool:
    """Whether a photographed product is one of the ``fraction`` that only test sets show.

    The id alone decides, so that photos which are added later move no other product to the other side.
    """
    digest = hashlib.blake2b(product_id.encode(), digest_size=8, person=b"held-back").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


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
