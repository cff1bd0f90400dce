"""Reader of product catalogues: a CSV list of products and their images."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

from mca_perception.errors import DatasetError

__all__ = ["read_catalogue"]

MAX_CATALOGUE_BYTES = 2_000_000_000
PRODUCT_COLUMN = "product_id"
IMAGE_COLUMN = "image"


def read_catalogue(
    path: str | os.PathLike[str], skipped: Counter[str] | None = None
) -> dict[str, list[Path]]:
    """Read a catalogue: columns ``product_id`` and ``image``, one line per image; other columns are ignored.

    Ids are text: leading zeros stay. Lines with the same id are images of the same product.

    Args:
        path: UTF-8 CSV file with a header. Image paths are relative to its folder.
        skipped: counts lines left out, by reason.

    Returns:
        Image files by product, in the order of the list.

    Raises:
        DatasetError: the file is missing, too large, not such a list, or has no usable line.
    """
    file = Path(path)
    skipped = Counter() if skipped is None else skipped
    references: dict[str, list[Path]] = {}
    try:
        if file.stat().st_size > MAX_CATALOGUE_BYTES:
            raise DatasetError(f"{file} is larger than {MAX_CATALOGUE_BYTES:,} bytes; split it")
        with file.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.DictReader(stream, strict=True)
            absent = {PRODUCT_COLUMN, IMAGE_COLUMN} - set(lines.fieldnames or ())
            if absent:
                raise DatasetError(
                    f"{file} has no column {' and no column '.join(sorted(absent))}; name them in its first line"
                )
            for line in lines:
                _take(file.parent, line, references, skipped)
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{file} cannot be read as UTF-8 CSV ({error}); check the file") from error
    if not references:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "it is empty"
        raise DatasetError(f"{file} has no usable line ({reasons}); check the paths of the images")
    return references


def _take(
    folder: Path, line: dict[str, str | None], references: dict[str, list[Path]], skipped: Counter[str]
) -> None:
    product, image = ((line[column] or "").strip() for column in (PRODUCT_COLUMN, IMAGE_COLUMN))
    if not product or not image:
        skipped["line without product id" if not product else "line without image"] += 1
        return
    path = folder / image
    if path in references.get(product, ()):
        skipped["image listed twice"] += 1
    elif not path.is_file():
        skipped["image missing"] += 1
    else:
        references.setdefault(product, []).append(path)
