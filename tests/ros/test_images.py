import struct
import zlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from mca_perception.ros.image_headers import RefusedImage
from mca_perception.ros.images import (
    decode_compressed,
    decode_depth,
    decode_image,
    to_compressed_message,
    to_image_message,
    wrap_encoded,
)

HEADER = Header(frame_id="camera")
RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def rgb_as(encoding: str) -> tuple[NDArray[np.generic], NDArray[np.uint8]]:
    """An array in an encoding, and the RGB picture it stands for."""
    alpha = np.full((5, 7, 1), 9, np.uint8)
    grey = np.repeat(GREY[..., None], 3, axis=2)
    return {
        "rgb8": (RGB, RGB),
        "bgr8": (RGB[..., ::-1], RGB),
        "rgba8": (np.concatenate([RGB, alpha], axis=2), RGB),
        "bgra8": (np.concatenate([RGB[..., ::-1], alpha], axis=2), RGB),
        "mono8": (GREY, grey),
        "mono16": (GREY.astype(np.uint16) * 256 + 17, grey),
        "8UC1": (GREY, grey),
        "8UC3": (RGB[..., ::-1], RGB),
        "rgb16": (RGB.astype(np.uint16) * 256 + 17, RGB),
        "bgr16": (RGB[..., ::-1].astype(np.uint16) * 256 + 17, RGB),
    }[encoding]


def padded(message: Image, padding: int) -> Image:
    """The same image with `padding` further bytes in each row."""
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    wide = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    return Image(
        height=message.height,
        width=message.width,
        encoding=message.encoding,
        step=message.step + padding,
        data=wide.tobytes(),
    )


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(
    "encoding",
    ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16", "8UC1", "8UC3", "rgb16", "bgr16"],
)
def test_every_encoding_decodes_to_the_same_picture(encoding: str, padding: int) -> None:
    array, expected = rgb_as(encoding)
    message = padded(to_image_message(array, encoding, HEADER), padding)
    decoded = decode_image(message)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


def test_big_endian_samples_are_read_as_such() -> None:
    array, expected = rgb_as("mono16")
    message = to_image_message(array, "mono16", HEADER)
    message.data = array.astype(">u2").tobytes()
    message.is_bigendian = 1
    np.testing.assert_array_equal(decode_image(message), expected)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_mosaics_are_filled_in(pattern: str, bits: int) -> None:
    colour = (200, 90, 30)
    tile = [colour["rgb".index(letter)] for letter in pattern]
    mosaic = np.tile(np.array(tile, np.uint16).reshape(2, 2), (8, 10))
    array = mosaic.astype(np.uint8) if bits == 8 else mosaic * 256
    decoded = decode_image(to_image_message(array, f"bayer_{pattern}{bits}", HEADER))
    assert decoded.shape == (16, 20, 3)
    assert np.abs(decoded[2:-2, 2:-2].astype(int) - colour).max() <= 1


@pytest.mark.parametrize(
    ("encoding", "order"), [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")]
)
def test_half_colour_is_decoded(encoding: str, order: str) -> None:
    y, u, v = 145, 54, 34  # pure green, ITU-R BT.601
    pair = [{"y": y, "u": u, "v": v}[letter] for letter in order]
    array = np.tile(np.array(pair, np.uint8).reshape(1, 2, 2), (6, 5, 1))
    decoded = decode_image(to_image_message(array, encoding, HEADER))
    assert decoded.shape == (6, 10, 3)
    assert np.abs(decoded.astype(int) - (0, 255, 0)).max() <= 3
    with pytest.raises(RefusedImage, match="even number"):
        decode_image(to_image_message(array[:, :9], encoding, HEADER))


DEPTH = np.array([[0.0, 0.5, 1.25], [2.0, 0.0, 65.535]], np.float32)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("encoding", ["16UC1", "mono16", "32FC1"])
def test_depth_comes_in_metres(encoding: str, padding: int) -> None:
    unknown = np.where(DEPTH > 0, DEPTH, np.nan).astype(np.float32)
    array = unknown if encoding == "32FC1" else np.round(DEPTH * 1000).astype(np.uint16)
    decoded = decode_depth(padded(to_image_message(array, encoding, HEADER), padding))
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, unknown, rtol=1e-6)


def test_big_endian_depth_is_read_as_such() -> None:
    message = to_image_message(np.array([[1500]], np.uint16), "16UC1", HEADER)
    message.data = np.array([[1500]], ">u2").tobytes()
    message.is_bigendian = 1
    assert decode_depth(message) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (to_image_message(GREY, "mono8", HEADER), "unsupported_encoding"),
        (Image(encoding="32FC1", width=2, height=2, step=8, data=bytes(15)), "truncated"),
        (Image(encoding="16UC1"), "empty"),
    ],
)
def test_bad_depth_is_refused(message: Image, cause: str) -> None:
    with pytest.raises(RefusedImage) as refusal:
        decode_depth(message)
    assert refusal.value.cause == cause


def test_rgb_is_a_view_on_the_message() -> None:
    message = padded(to_image_message(RGB, "rgb8", HEADER), 4)
    assert np.shares_memory(decode_image(message), np.frombuffer(message.data, np.uint8))


def image(**changes: object) -> Image:
    """An intact rgb8 image with some fields changed."""
    message = to_image_message(RGB, "rgb8", HEADER)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("message", "cause", "text"),
    [
        (image(encoding="nv21"), "unsupported_encoding", "nv21"),
        (image(encoding=""), "unsupported_encoding", "rgb8"),
        (image(width=0), "empty", "0 x 5"),
        (image(height=0, data=b""), "empty", "7 x 0"),
        (image(data=bytes(5 * 21 - 1)), "truncated", "104 bytes"),
        (image(data=b""), "truncated", "0 bytes"),
        (image(data=bytes(5 * 21 + 1)), "inconsistent_step", "106 bytes"),
        (image(step=7), "inconsistent_step", "take 21"),
        (image(step=20), "inconsistent_step", "step is 20"),
        (image(width=10_000, height=10_000), "too_large", "100 megapixels"),
        (image(width=2**32 - 1, height=2**32 - 1), "too_large", "limit is 50"),
    ],
)
def test_bad_images_are_refused_with_cause_and_reason(message: Image, cause: str, text: str) -> None:
    with pytest.raises(RefusedImage, match=text) as refusal:
        decode_image(message)
    assert refusal.value.cause == cause


def encoded(suffix: str, pixels: NDArray[np.uint8] = RGB) -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


def test_compressed_png_is_exact_and_jpeg_close() -> None:
    np.testing.assert_array_equal(decode_compressed(wrap_encoded(encoded(".png"), HEADER, "png")), RGB)
    smooth = np.full((40, 60, 3), (200, 90, 30), np.uint8)
    decoded = decode_compressed(to_compressed_message(smooth, HEADER))
    assert np.abs(decoded.astype(int) - smooth).max() <= 6


def jpeg_with_rotation_tag() -> bytes:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    data = encoded(".jpg")
    return data[:2] + segment + data[2:]


def test_orientation_tags_are_ignored() -> None:
    assert decode_compressed(wrap_encoded(jpeg_with_rotation_tag(), HEADER, "jpeg")).shape == RGB.shape


def huge_png(width: int, height: int) -> bytes:
    """A small file whose header announces a huge picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def huge_jpeg() -> bytes:
    data = bytearray(encoded(".jpg"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 10_000, 10_000)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty"),
        (b"GIF89a", "undecodable"),
        (b"\xff\xd8 not a jpeg", "undecodable"),
        (b"\x89PNG\r\n\x1a\n", "undecodable"),
        (encoded(".jpg")[:-2], "truncated"),
        (encoded(".jpg")[:60], "undecodable"),
        (encoded(".png")[:-12], "truncated"),
        (huge_png(10_000, 10_000), "too_large"),
        (huge_png(0, 5), "empty"),
        (huge_png(5, 5), "undecodable"),
        (huge_jpeg(), "too_large"),
    ],
)
def test_bad_files_are_refused_before_they_are_unpacked(data: bytes, cause: str) -> None:
    with pytest.raises(RefusedImage) as refusal:
        decode_compressed(wrap_encoded(data, HEADER, "jpeg"))
    assert refusal.value.cause == cause


def test_images_survive_the_way_out_and_in() -> None:
    mask = np.array([[0, 1], [300, 65535]], np.uint16)
    message = to_image_message(mask, "mono16", HEADER)
    assert (message.step, message.is_bigendian, message.header.frame_id) == (4, 0, "camera")
    np.testing.assert_array_equal(np.frombuffer(message.data, "<u2").reshape(2, 2), mask)
    np.testing.assert_array_equal(decode_image(to_image_message(RGB[:, ::2], "rgb8", HEADER)), RGB[:, ::2])


@pytest.mark.parametrize(
    ("array", "encoding"), [(RGB, "mono8"), (GREY, "rgb8"), (GREY, "mono16"), (RGB[None], "rgb8")]
)
def test_arrays_of_another_layout_are_refused(array: NDArray[np.uint8], encoding: str) -> None:
    with pytest.raises(ValueError, match="layout"):
        to_image_message(array, encoding, HEADER)


def test_compressed_messages_hold_their_file() -> None:
    message = to_compressed_message(RGB, HEADER, quality=50)
    assert isinstance(message, CompressedImage)
    assert message.format == "jpeg"
    assert bytes(message.data).startswith(b"\xff\xd8")
