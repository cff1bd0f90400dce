"""Reading image files with bounds: the size in the header is checked before anything is decoded."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import InvalidImageError
from mca_perception.geometry import MAX_PIXELS, Size

__all__ = [
    "IMAGE_SUFFIXES",
    "decode_rgb",
    "find_images",
    "image_size",
    "read_rgb",
    "resize_square",
    "size_in_header",
]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MAX_FILE_BYTES = 512_000_000
_HEADER_BYTES = 1 << 20
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers; C4, C8 and CC in that range mean something else.
_JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files directly in a folder, in natural order (``2.jpg`` before ``10.jpg``)."""
    paths = [p for p in Path(folder).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    return sorted(paths, key=lambda p: (len(p.stem) if p.stem.isdigit() else 1 << 16, p.name))


def image_size(path: str | os.PathLike[str]) -> Size:
    """Size of a stored image, from its header alone for JPEG and PNG.

    Returns:
        ``(height, width)`` as stored; an EXIF orientation is not applied.

    Raises:
        InvalidImageError: the file is missing or not an image.
    """
    header = _read_bytes(Path(path), _HEADER_BYTES)
    size = size_in_header(header)
    if size is None:
        height, width = read_rgb(path).shape[:2]
        size = (height, width)
    return size


def read_rgb(
    path: str | os.PathLike[str], *, oriented: bool = False, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read an image file.

    Args:
        path: the file.
        oriented: apply an EXIF orientation. Leave it off where annotations refer to stored pixels.
        max_pixels: limit on height x width.

    Returns:
        uint8 ``[H, W, 3]`` RGB.

    Raises:
        InvalidImageError: the file is missing, too large or cannot be decoded.
    """
    data = _read_bytes(Path(path), MAX_FILE_BYTES + 1)
    return decode_rgb(data, str(path), oriented=oriented, max_pixels=max_pixels)


def decode_rgb(
    data: bytes, name: str, *, oriented: bool = False, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode an image from memory, as :func:`read_rgb` does from a file; messages call it ``name``.

    Raises:
        InvalidImageError: it is too large or cannot be decoded.
    """
    if len(data) > MAX_FILE_BYTES:
        raise InvalidImageError(f"{name} is larger than {MAX_FILE_BYTES:,} bytes; reduce it first")
    size = size_in_header(data)
    if size is not None and size[0] * size[1] > max_pixels:
        raise InvalidImageError(
            f"{name} has {size[1]} x {size[0]} pixels, the limit is {max_pixels:,}; reduce it first"
        )
    flags = cv2.IMREAD_COLOR if oriented else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:  # refused by OpenCV's own size limit
        image = None
    if image is None:
        raise InvalidImageError(f"{name} cannot be decoded as an image; replace or remove it")
    if image.shape[0] * image.shape[1] > max_pixels:
        raise InvalidImageError(f"{name} has more than {max_pixels:,} pixels; reduce it first")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def resize_square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """``[H, W, 3]`` to ``[size, size, 3]``; pixels are averaged when shrinking, or small print aliases."""
    shrinks = min(image.shape[:2]) > size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (size, size), interpolation=interpolation), np.uint8)


def size_in_header(data: bytes) -> Size | None:
    """``(height, width)`` that a JPEG or PNG file states; None for other data."""
    return _png_size(data) or _jpeg_size(data)


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(limit)
    except OSError as error:
        raise InvalidImageError(f"{path} cannot be read ({error.strerror}); check the path") from error


def _png_size(data: bytes) -> Size | None:
    if not data.startswith(_PNG_SIGNATURE) or len(data) < 24:
        return None
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def _jpeg_size(data: bytes) -> Size | None:
    """Walk the JPEG segments up to the frame header."""
    if not data.startswith(b"\xff\xd8"):
        return None
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _JPEG_FRAME_MARKERS:
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            width = int.from_bytes(data[position + 7 : position + 9], "big")
            return (height, width) if height and width else None
        fill_byte = marker == 0xFF
        position += 1 if fill_byte else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None
