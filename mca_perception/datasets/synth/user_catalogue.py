"""A catalogue with the user's own product photos, and the contact sheet that shows how they were cut out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mca_perception.datasets.synth import writer
from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.cutouts import cut_out
from mca_perception.datasets.synth.effects import encode_jpeg
from mca_perception.datasets.synth.photos import is_held_back, load_photos, read_photo
from mca_perception.datasets.synth.textures import Color, Image
from mca_perception.errors import DatasetError

SHEET_NAME = "catalogue_sheet.jpg"
MAX_SHEET_PHOTOS = 480
_COLUMNS = 6
_TILE_WIDTH, _TILE_HEIGHT, _SIDE = 300, 172, 144
_PAPER: Color = (238, 238, 238)
# Not a colour that products or plain backgrounds tend to have: what was left of a background shows.
_BEHIND: Color = (70, 160, 90)


@dataclass(frozen=True)
class UserCatalogue:
    """Products to draw from, why photos were refused, and how many are kept for the other side of a split."""

    catalogue: Catalogue
    refused: dict[Path, str] = field(default_factory=dict)
    kept_apart: int = 0

    def figures(self) -> dict[str, Any]:
        """Photos used, refused (by reason), and kept for other splits if any; nothing without photos."""
        photos = len(self.catalogue.photos)
        if not photos:
            return {}
        reasons = Counter(self.refused.values())
        apart = {"photos_of_other_splits": self.kept_apart} if self.kept_apart else {}
        return {"photos": photos, **apart, "photos_refused": dict(sorted(reasons.items()))}

    def write_sheet(self, folder: Path) -> None:
        """Write ``catalogue_sheet.jpg``: each photo with its cut-out, or why it was refused; nothing without photos.

        Refused photos come first; of more than 480, others are left out evenly.
        """
        if self.catalogue.photos:
            folder.mkdir(parents=True, exist_ok=True)
            writer.write_bytes(folder / SHEET_NAME, encode_jpeg(self._sheet(), 88))

    def _sheet(self) -> Image:
        refused = [
            _tile(path, reason) for path, reason in list(self.refused.items())[: MAX_SHEET_PHOTOS // 2]
        ]
        paths = [photo.path for photo in self.catalogue.photos]
        shown = np.linspace(0, len(paths) - 1, min(len(paths), MAX_SHEET_PHOTOS - len(refused)))
        tiles = refused + [_tile(paths[round(float(place))], None) for place in shown]
        tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % _COLUMNS)
        rows = [np.hstack(tiles[start : start + _COLUMNS]) for start in range(0, len(tiles), _COLUMNS)]
        return np.vstack(rows)


def open_catalogue(
    seed: int,
    size: int,
    folder: Path | None,
    photo_share: float | None = None,
    *,
    test_fraction: float | None = None,
    for_test: bool = False,
) -> UserCatalogue:
    """Catalogue of ``size`` generated products and the photos of ``folder``, if any.

    With ``test_fraction``, so many of the photographed products are held back: they alone are in the catalogue
    ``for_test``, and in no other.

    Raises:
        DatasetError: as :class:`Catalogue` and :func:`load_photos`, or no photo is on the side that is wanted.
    """
    found, refused = load_photos(folder) if folder else ([], {})
    photos = [
        photo
        for photo in found
        if test_fraction is None or is_held_back(photo.product_id, test_fraction) == for_test
    ]
    if found and not photos:
        side = "held back for" if for_test else "left beside"
        raise DatasetError(
            f"--photo-test-fraction {test_fraction:g}: none of the {len(found)} photos is {side} the split test; "
            "choose another fraction or add photos"
        )
    return UserCatalogue(Catalogue(seed, size, photos, photo_share), refused, len(found) - len(photos))


def _tile(path: Path, reason: str | None) -> Image:
    tile = np.empty((_TILE_HEIGHT, _TILE_WIDTH, 3), np.uint8)
    tile[:] = _PAPER
    try:
        photo = read_photo(path)
        _place(tile, photo[:, :, :3], 4)
    except DatasetError:
        photo = None
    if reason is None and photo is not None:
        rgba = cut_out(photo)
        share = rgba[:, :, 3:] / np.float32(255)
        _place(tile, (rgba[:, :, :3] * share + np.array(_BEHIND) * (1 - share)).astype(np.uint8), _SIDE + 10)
    else:
        _write(tile, reason or "", (_SIDE + 10, _SIDE // 2), (190, 20, 20))
    _write(tile, path.stem, (4, _TILE_HEIGHT - 8), (20, 20, 20))
    return tile


def _place(tile: Image, image: Image, x: int) -> None:
    factor = _SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    tile[4 : 4 + size[1], x : x + size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _write(tile: Image, text: str, origin: tuple[int, int], color: Color) -> None:
    # OpenCV's stroke fonts know ASCII only.
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(tile, plain[:44], origin, cv2.FONT_HERSHEY_SIMPLEX, 0.36, color, 1, cv2.LINE_AA)
