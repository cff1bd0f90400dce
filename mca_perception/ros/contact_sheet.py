"""One picture of many: overlays side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mca_perception.datasets.images import read_rgb

__all__ = ["write_contact_sheet"]

COLUMNS, ROWS = 3, 3
CELL_WIDTH, GAP = 560, 6
BACKGROUND = 245


def write_contact_sheet(pictures: Sequence[Path], target: Path) -> bool:
    """Write up to nine of the pictures, evenly spread over all of them, as one JPEG.

    Returns:
        Whether there was anything to write.
    """
    if not pictures:
        return False
    count = min(len(pictures), COLUMNS * ROWS)
    chosen = [pictures[i] for i in np.linspace(0, len(pictures) - 1, count).round().astype(int)]
    images = [read_rgb(path) for path in chosen]
    height = max(round(image.shape[0] * CELL_WIDTH / image.shape[1]) for image in images)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    sheet = np.full(
        (rows * (height + GAP) + GAP, columns * (CELL_WIDTH + GAP) + GAP, 3), BACKGROUND, dtype=np.uint8
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = GAP + row * (height + GAP), GAP + column * (CELL_WIDTH + GAP)
        scale = min(CELL_WIDTH / image.shape[1], height / image.shape[0])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        cell = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        sheet[top : top + size[1], left : left + size[0]] = cell
    _, data = cv2.imencode(".jpg", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_bytes(data.tobytes())
    temporary.replace(target)
    return True
