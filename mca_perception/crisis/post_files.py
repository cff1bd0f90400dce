"""Posts from JSON lines, one object per line, bad lines answered instead of ending the file.

``{"text": "...", "images": ["photo.jpg"], "post_id": "...", "event_id": "..."}``; every field is optional, but a text
or an image must be there. ``image`` with one path is read too. Paths are relative to the file's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mca_perception.crisis.images import MAX_IMAGE_BYTES, MAX_IMAGES
from mca_perception.crisis.posts import Post
from mca_perception.errors import DatasetError, PostError

__all__ = ["count_lines", "read_image", "read_posts"]

MAX_LINE_BYTES = 8_000_000
_CHUNK = 1 << 20


def count_lines(path: Path) -> int:
    """Lines of a file, for progress.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(_CHUNK), b""))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); check the path") from error


def read_posts(path: Path) -> Iterator[tuple[int, Post | PostError]]:
    """Line number and post of every line that is not blank; a line that is none comes as the error that says why.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                whole = line.endswith(b"\n")
                too_long = len(line) > MAX_LINE_BYTES
                while too_long and not whole and (rest := stream.readline(MAX_LINE_BYTES)):
                    whole = rest.endswith(b"\n")
                if too_long:
                    yield (
                        number,
                        PostError(f"line {number} has more than {MAX_LINE_BYTES:,} bytes; shorten it"),
                    )
                elif line.strip():
                    yield number, _parse(line, number, path.parent)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); check the path") from error


def read_image(path: Path) -> bytes:
    """An image file's bytes.

    Raises:
        PostError: it is missing, empty or too large.
    """
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_IMAGE_BYTES:
            raise PostError(f"image {path} has {size:,} bytes; it must have 1 to {MAX_IMAGE_BYTES:,}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise PostError(f"image {path} cannot be read ({error}); check the path") from error


def _parse(line: bytes, number: int, folder: Path) -> Post | PostError:
    try:
        content = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        return PostError(f"line {number} is not JSON ({str(error)[:80]}); write one object per line")
    if not isinstance(content, dict):
        return PostError(f'line {number} is no object; write {{"text": "..."}}')
    fields: dict[str, Any] = {name: content.get(name) or "" for name in ("text", "post_id", "event_id")}
    if wrong := [name for name, value in fields.items() if not isinstance(value, str)]:
        return PostError(f"line {number}: {wrong[0]} must be a string")
    images = content.get("images") or content.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        return PostError(f"line {number}: images must be a list of paths")
    if len(images) > MAX_IMAGES:
        return PostError(
            f"line {number} has {len(images)} images, at most {MAX_IMAGES} are allowed; leave some out"
        )
    try:
        return Post(images=tuple(read_image(folder / name) for name in images), **fields)
    except PostError as error:
        return PostError(f"line {number}: {error}")
