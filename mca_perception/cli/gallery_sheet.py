"""A picture of what a gallery holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.images import decode_rgb, read_rgb
from mca_perception.errors import GalleryError, InvalidImageError
from mca_perception.identification.gallery import Gallery

__all__ = ["Shown", "write_sheet"]

TILE = 160
CAPTION_HEIGHT = 22
COLUMNS = 8
_GREY, _INK = 225, (25, 25, 25)


class Shown(NamedTuple):
    """Products on a sheet, and those of them without an image that can be read."""

    products: int
    without_image: int


def write_sheet(gallery: Gallery, path: Path, products: Sequence[str]) -> Shown:
    """Write a picture with the first readable reference image of each product.

    Args:
        gallery: where they are.
        path: the picture; its suffix, ``.jpg`` or ``.png``, decides the format.
        products: which to show, in order.

    Raises:
        GalleryError: the gallery lacks a product or has none, or the picture cannot be written.
    """
    counts = gallery.reference_counts()
    unknown = [product for product in products if product not in counts]
    if unknown or not products:
        missing = f"product {unknown[0]!r}" if unknown else "products"
        raise GalleryError(f"gallery {gallery.path} has no {missing}; see `mca gallery stats --list`")
    pictures = {product: _first_picture(gallery, product) for product in products}
    tiles = [_tile(picture, f"{product} ({counts[product]})") for product, picture in pictures.items()]
    columns = min(COLUMNS, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    _write(path, np.vstack(rows))
    return Shown(len(pictures), sum(picture is None for picture in pictures.values()))


def _first_picture(gallery: Gallery, product: str) -> NDArray[np.uint8] | None:
    for image in gallery.images([product])[product]:
        try:
            if isinstance(image, bytes):
                return decode_rgb(image, "an image kept in the gallery")
            return read_rgb(image, oriented=True)
        except InvalidImageError:
            continue
    return None


def _tile(picture: NDArray[np.uint8] | None, caption: str) -> NDArray[np.uint8]:
    """The picture, its aspect kept, above its caption."""
    tile = np.full((TILE + CAPTION_HEIGHT, TILE + 4, 3), 255, np.uint8)
    tile[:TILE, 2:-2] = _GREY
    if picture is not None:
        scale = TILE / max(picture.shape[:2])
        height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
        top, left = (TILE - height) // 2, 2 + (TILE - width) // 2
        tile[top : top + height, left : left + width] = cv2.resize(
            picture, (width, height), interpolation=cv2.INTER_AREA
        )
    plain = caption.encode("ascii", "replace").decode()  # OpenCV's built-in fonts know little more
    cv2.putText(tile, plain, (4, TILE + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.38, _INK, 1, cv2.LINE_AA)
    return tile


def _write(path: Path, image: NDArray[np.uint8]) -> None:
    try:
        encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(encoded.tobytes())
        part.replace(path)
    except (OSError, cv2.error) as error:
        raise GalleryError(
            f"{path} cannot be written; give a .jpg or .png in a folder that is writable"
        ) from error
