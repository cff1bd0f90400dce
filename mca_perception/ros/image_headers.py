"""Size and completeness of JPEG and PNG files, read without decoding them."""

from __future__ import annotations

import struct

from mca_perception.errors import InvalidImageError

__all__ = ["RefusedImage", "encoded_size", "image_format"]

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}

Bytes = bytes | memoryview


class RefusedImage(InvalidImageError):  # noqa: N818 - named like what it stands for
    """An image that is not processed.

    Attributes:
        cause: short name under which the drop is counted.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


def image_format(data: Bytes) -> str:
    """``jpeg`` or ``png``, judged by the first bytes.

    Raises:
        RefusedImage: it is neither.
    """
    if bytes(data[:2]) == _JPEG_START:
        return "jpeg"
    if bytes(data[:8]) == _PNG_START:
        return "png"
    raise RefusedImage(
        "empty" if not len(data) else "undecodable",
        f"compressed image of {len(data)} bytes is neither JPEG nor PNG; publish one of these",
    )


def encoded_size(data: Bytes) -> tuple[int, int]:
    """``(height, width)`` in pixels, from the header.

    Raises:
        RefusedImage: not a JPEG or PNG, damaged before the size is stated, or cut off before its end mark.
    """
    content = bytes(data)
    return _jpeg_size(content) if image_format(data) == "jpeg" else _png_size(content)


def _png_size(data: bytes) -> tuple[int, int]:
    if len(data) < 24 or data[12:16] != b"IHDR":
        raise RefusedImage("undecodable", f"PNG of {len(data)} bytes has no header; publish intact files")
    if data.rfind(_PNG_END) < 0:
        raise _truncated("PNG", data)
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walk the segments, so that a thumbnail inside one of them is not taken for the image."""
    size = None
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _WITHOUT_LENGTH:
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _START_OF_FRAME and position + 9 <= len(data):
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            size = (height, width)
        if marker == _START_OF_SCAN:
            break
        position += 2 + length
    if size is None:
        raise RefusedImage("undecodable", f"JPEG of {len(data)} bytes states no size; publish intact files")
    if data.rfind(_JPEG_END) < position:
        raise _truncated("JPEG", data)
    return size


def _truncated(kind: str, data: bytes) -> RefusedImage:
    return RefusedImage("truncated", f"{kind} of {len(data)} bytes is cut off; publish intact files")
