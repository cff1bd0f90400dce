"""Between image messages and NumPy arrays: checked on the way in, built in one place on the way out.

Incoming ``sensor_msgs/Image`` data is looked at through a view; only a change of channel order or depth makes
a copy. Outgoing data is appended to the array that the message comes with, which is one copy: a field that is
assigned, or given to the constructor, is copied up to three times, and checked element by element by some
distributions when it is an ndarray or ``bytes``, which is up to a thousand times slower.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image

from mca_perception.geometry import MAX_PIXELS
from mca_perception.ros.image_headers import RefusedImage, encoded_size

__all__ = [
    "DEPTH_ENCODINGS",
    "ENCODINGS",
    "decode_compressed",
    "decode_depth",
    "decode_encoded",
    "decode_image",
    "to_compressed_message",
    "to_image_message",
    "with_data",
    "wrap_encoded",
]

RgbImage = NDArray[np.uint8]
Message = TypeVar("Message", bound=Any)


class Encoding(NamedTuple):
    """Memory layout of one pixel, and the OpenCV conversion to RGB (``None``: it is RGB already)."""

    channels: int
    bytes_per_channel: int
    to_rgb: int | None


ENCODINGS = {
    "rgb8": Encoding(3, 1, None),
    "bgr8": Encoding(3, 1, cv2.COLOR_BGR2RGB),
    "rgba8": Encoding(4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": Encoding(4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": Encoding(1, 1, cv2.COLOR_GRAY2RGB),
    "mono16": Encoding(1, 2, cv2.COLOR_GRAY2RGB),
    "8UC1": Encoding(1, 1, cv2.COLOR_GRAY2RGB),
    "8UC3": Encoding(3, 1, cv2.COLOR_BGR2RGB),
    "rgb16": Encoding(3, 2, None),
    "bgr16": Encoding(3, 2, cv2.COLOR_BGR2RGB),
    "yuv422": Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
    **{
        f"bayer_{pattern.lower()}{bits}": Encoding(1, bits // 8, getattr(cv2, f"COLOR_Bayer{pattern}2RGB"))
        for pattern in ("RGGB", "BGGR", "GBRG", "GRBG")
        for bits in (8, 16)
    },
}
"""Supported values of ``Image.encoding``."""

DEPTH_ENCODINGS = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}
"""Supported encodings of depth images, and the type of their values."""


class ImageLike(Protocol):
    """The fields of ``sensor_msgs/Image`` that hold pixels."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: Any


class CompressedImageLike(Protocol):
    """The fields of ``sensor_msgs/CompressedImage`` that hold pixels."""

    format: str
    data: Any


def decode_image(message: ImageLike) -> RgbImage:
    """Pixels of an ``Image`` message.

    Args:
        message: the message; rows may be padded (``step``), ``mono16`` may have either byte order.

    Returns:
        uint8 ``[H, W, 3]`` RGB. For ``rgb8`` a view on the message's data, with its row padding; a copy
        otherwise.

    Raises:
        RefusedImage: the encoding is not supported, the image is empty or larger than ``MAX_PIXELS``,
        ``step`` is too
            small for ``width``, or ``data`` has another length than ``step * height``.
    """
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        raise RefusedImage(
            "unsupported_encoding",
            f"image encoding {message.encoding[:40]!r} is not supported; "
            f"publish one of {', '.join(ENCODINGS)}",
        )
    rows = _rows(message, encoding.channels * encoding.bytes_per_channel)
    height, width = rows.shape[0], int(message.width)
    if encoding.bytes_per_channel == 2:
        rows = rows[:, 0 if message.is_bigendian else 1 :: 2]  # the high byte is the 8-bit image
    pixels = rows.reshape(height, width, encoding.channels)
    if encoding.to_rgb is None:
        return pixels
    if encoding.channels == 2 and width % 2:
        raise RefusedImage(
            "inconsistent_step", f"{message.encoding} image is {width} pixels wide; it must be an even number"
        )
    return _as_uint8(cv2.cvtColor(np.ascontiguousarray(pixels), encoding.to_rgb))


def decode_depth(message: ImageLike) -> NDArray[np.float32]:
    """Depth of an ``Image`` message in metres, along the optical axis.

    Args:
        message: ``16UC1`` or ``mono16`` (millimetres, 0 is unknown) or ``32FC1`` (metres, NaN is unknown).

    Returns:
        float32 ``[H, W]``; NaN where it is unknown.

    Raises:
        RefusedImage: another encoding, or a message as :func:`decode_image` refuses it.
    """
    kind = DEPTH_ENCODINGS.get(message.encoding)
    if kind is None:
        raise RefusedImage(
            "unsupported_encoding",
            f"depth encoding {message.encoding[:40]!r} is not supported; "
            f"publish one of {', '.join(DEPTH_ENCODINGS)}",
        )
    size = np.dtype(kind).itemsize
    rows = _rows(message, size)
    values = rows.view(np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<"))
    if kind == "f4":
        return np.asarray(values, np.float32)
    depth = values.astype(np.float32) * np.float32(1e-3)
    depth[values == 0] = np.nan
    return np.asarray(depth, np.float32)


def _rows(message: ImageLike, pixel_bytes: int) -> NDArray[np.uint8]:
    """The rows' bytes without padding, uint8 ``[H, W * pixel_bytes]``: a view on the message."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    _check_size(height, width)
    if step < width * pixel_bytes:
        raise RefusedImage(
            "inconsistent_step",
            f"image step is {step} bytes, but {width} pixels of {message.encoding} take "
            f"{width * pixel_bytes}; fix the publisher",
        )
    if len(message.data) != step * height:
        problem = "truncated" if len(message.data) < step * height else "inconsistent_step"
        raise RefusedImage(
            problem,
            f"image data has {len(message.data)} bytes, but step {step} x height {height} is "
            f"{step * height}; fix the publisher",
        )
    return np.frombuffer(message.data, np.uint8).reshape(height, step)[:, : width * pixel_bytes]


def decode_compressed(message: CompressedImageLike) -> RgbImage:
    """Pixels of a ``CompressedImage`` message that holds a JPEG or PNG file.

    The size is read from the file's header first, so a small file that unpacks to a huge image is refused
    unopened. What counts is the data: ``format`` strings differ between drivers. Orientation tags are
    ignored, since boxes and masks refer to the pixels as they are stored.

    Returns:
        uint8 ``[H, W, 3]`` RGB.

    Raises:
        RefusedImage: not a JPEG or PNG, empty, truncated, larger than ``MAX_PIXELS``, or not decodable.
    """
    return decode_encoded(memoryview(message.data).cast("B"))


def decode_encoded(data: bytes | memoryview) -> RgbImage:
    """Decode the bytes of a JPEG or PNG file; see :func:`decode_compressed`."""
    height, width = encoded_size(data)
    _check_size(height, width)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise RefusedImage("undecodable", f"compressed image cannot be decoded ({error.err})") from error
    if pixels is None or pixels.shape[:2] != (height, width):
        raise RefusedImage(
            "undecodable",
            f"compressed image of {len(data)} bytes cannot be decoded; publish intact JPEG or PNG files",
        )
    return _as_uint8(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def to_image_message(pixels: NDArray[Any], encoding: str, header: Any) -> Image:
    """Build an ``Image`` message. The only way in which this package makes one.

    Args:
        pixels: ``[H, W]`` or ``[H, W, C]``; uint8, or as the encoding has it.
        encoding: name of its layout, a key of :data:`ENCODINGS` or :data:`DEPTH_ENCODINGS`.
        header: goes into the message as it is.

    Raises:
        ValueError: the array does not have the layout of the encoding.
    """
    layout = ENCODINGS.get(encoding) or Encoding(1, np.dtype(DEPTH_ENCODINGS[encoding]).itemsize, None)
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if (
        pixels.ndim not in (2, 3)
        or channels != layout.channels
        or pixels.itemsize != layout.bytes_per_channel
    ):
        raise ValueError(f"array {pixels.shape} {pixels.dtype} does not have the layout of {encoding}")
    height, width = pixels.shape[:2]
    message = Image(
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=width * channels * pixels.itemsize,
    )
    little_endian = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
    return with_data(message, np.ascontiguousarray(little_endian).data)


def to_compressed_message(pixels: RgbImage, header: Any, *, quality: int = 90) -> CompressedImage:
    """Build a JPEG ``CompressedImage`` message.

    Args:
        pixels: uint8 ``[H, W, 3]`` RGB.
        header: goes into the message as it is.
        quality: JPEG quality, 1 to 100.
    """
    _, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return wrap_encoded(encoded.data, header, "jpeg")


def wrap_encoded(data: bytes | memoryview, header: Any, image_format: str) -> CompressedImage:
    """Put the bytes of an image file into a ``CompressedImage`` message."""
    return with_data(CompressedImage(header=header, format=image_format), data)


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise RefusedImage("empty", f"image is {width} x {height} pixels; publish at least 1 x 1")
    if height * width > MAX_PIXELS:
        raise RefusedImage(
            "too_large",
            f"image is {width} x {height} = {height * width / 1e6:.0f} megapixels, the limit is "
            f"{MAX_PIXELS / 1e6:.0f}; publish it smaller",
        )


def with_data(message: Message, data: bytes | memoryview) -> Message:
    """Fill the ``data`` field of a new message; returns the message."""
    message.data.frombytes(memoryview(data).cast("B"))
    return message


def _as_uint8(pixels: Any) -> RgbImage:
    return np.asarray(pixels, dtype=np.uint8)
