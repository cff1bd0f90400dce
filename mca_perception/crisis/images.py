"""Images of posts: limits, and what is wrong with one, found without decoding it."""

from __future__ import annotations

from collections.abc import Sequence

from mca_perception.datasets.images import size_in_header
from mca_perception.geometry import MAX_PIXELS

__all__ = ["MAX_IMAGES", "MAX_IMAGE_BYTES", "image_problem", "image_warnings"]

MAX_IMAGE_BYTES = 20_000_000
MAX_IMAGES = 8
"""Images of one post that are looked at."""


def image_problem(data: bytes) -> str:
    """Why an encoded image cannot be read, or an empty string.

    Only the header is looked at, so that a small file which unpacks to a huge picture costs nothing. A file that is
    damaged further on still passes.
    """
    if not 0 < len(data) <= MAX_IMAGE_BYTES:
        return f"it has {len(data):,} bytes; 1 to {MAX_IMAGE_BYTES:,} are allowed"
    size = size_in_header(data)
    if size is None:
        return "it is neither a JPEG nor a PNG file"
    height, width = size
    if not 0 < height * width <= MAX_PIXELS:
        return f"it has {width} x {height} pixels; 1 to {MAX_PIXELS:,} are allowed"
    return ""


def image_warnings(images: Sequence[bytes]) -> list[str]:
    """What is wrong with the images of a post, one line each: too many of them, or one that cannot be read."""
    warnings = []
    if len(images) > MAX_IMAGES:
        warnings.append(f"images: only the first {MAX_IMAGES} of {len(images)} were looked at")
    for number, data in enumerate(images[:MAX_IMAGES], 1):
        if problem := image_problem(data):
            warnings.append(f"image {number} cannot be read: {problem}")
    return warnings
