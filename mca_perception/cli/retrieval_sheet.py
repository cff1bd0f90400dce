"""A picture of the images that a search found."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.cli.contact_sheets import captioned, grid, write_image
from mca_perception.errors import InvalidImageError, RetrievalError
from mca_perception.retrieval.retriever import Answer
from mca_perception.retrieval.sources import open_image

__all__ = ["write_sheet"]

TILE = 220
COLUMNS = 5
MAX_SHOWN = 100
MAX_TITLE_CHARACTERS = 160
_GREY = 225


def write_sheet(answer: Answer, path: Path) -> int:
    """Write a picture of the hits, best first, under the text that was searched for.

    Args:
        answer: of a search; its first hundred hits are shown.
        path: the picture; ``.jpg`` or ``.png``.

    Returns:
        How many of the images could not be read; grey squares stand for them.

    Raises:
        RetrievalError: the picture cannot be written.
    """
    tiles, missing = [], 0
    for number, hit in enumerate(answer.hits[:MAX_SHOWN], start=1):
        try:
            picture = _fit(open_image(hit.uri))
        except InvalidImageError:
            picture, missing = np.full((TILE, TILE, 3), _GREY, np.uint8), missing + 1
        tiles.append(captioned(picture, f"{number}  {hit.score:.3f}  {hit.image_id[-16:]}"))
    sheet = captioned(grid(tiles, COLUMNS), answer.summary[:MAX_TITLE_CHARACTERS])
    try:
        write_image(path, sheet)
    except (OSError, cv2.error) as error:
        raise RetrievalError(
            f"{path} cannot be written; give a .jpg or .png in a folder that is writable"
        ) from error
    return missing


def _fit(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image in the middle of a grey square, its aspect kept."""
    scale = TILE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    tile = np.full((TILE, TILE, 3), _GREY, np.uint8)
    top, left = (TILE - height) // 2, (TILE - width) // 2
    tile[top : top + height, left : left + width] = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA
    )
    return tile
