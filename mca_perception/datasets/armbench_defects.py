"""Reader of ARMBench's defect images: ``train.csv``, ``test.csv``, ``data/<id>/<id>_<view>.jpg`` and ``.json``.

A label belongs to one image: an object may look nominal in one view of a pick and defective in another (specification
of ARMBench, section 1.3). Videos are read by :mod:`mca_perception.datasets.armbench_defect_videos`.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.armbench import read_json
from mca_perception.datasets.defect_ids import in_held_out_session, read_entries, read_lists, session_of
from mca_perception.datasets.shapes import rasterise_segmentation
from mca_perception.errors import DatasetError

__all__ = [
    "LABELS",
    "OPENED",
    "PARTS",
    "SPLITS",
    "DefectIndex",
    "DefectPick",
    "DefectView",
    "held_out",
    "read_defect_images",
    "read_defect_view",
]

LABELS = ("nominal", "multi_pick", "package_defect")
"""Labels of an image, in the order of a model's outputs."""

PARTS = ".parts.png"
"""End of the name of a file beside an image that numbers the pixels of what is held: not in ARMBench, which has none.

8 bits, 0 for none of it, items from 1, and :data:`OPENED` for what no intact package shows.
"""

OPENED = 255

SPLITS = ("official", "session_disjoint")
SESSION_TEST_FRACTION = 1 / 3
MAX_JSON_BYTES = 4_000_000
MAX_POLYGON_POINTS = 100_000
MAX_COORDINATE = 1e6


@dataclass(frozen=True)
class DefectView:
    """One image of a pick.

    Attributes:
        name: of the view, the file's name without id and suffix.
        image: file.
        label: position in :data:`LABELS`.
        sublabel: kind of defect in words; may be empty.
        polygon: float32 ``[P, 2]`` outline of what was picked, in pixels; None where there is none.
        parts: file that tells items and openings apart, see :data:`PARTS`; None where there is none.
    """

    name: str
    image: Path
    label: int
    sublabel: str
    polygon: NDArray[np.float32] | None
    parts: Path | None = None

    def mask(self, height: int, width: int) -> NDArray[np.bool_] | None:
        """Pixels inside the outline, bool ``[height, width]``; None without an outline in the image."""
        if self.polygon is None:
            return None
        mask = rasterise_segmentation([self.polygon.ravel().tolist()], height, width)
        return mask if mask.any() else None


@dataclass(frozen=True)
class DefectPick:
    """One pick with its images, sorted by name."""

    id: str
    views: tuple[DefectView, ...]

    @property
    def session(self) -> str:
        """What the pick must share a side of a split with."""
        return session_of(self.id)

    @property
    def defects(self) -> frozenset[int]:
        """Defects that at least one view shows."""
        return frozenset(view.label for view in self.views) - {0}


@dataclass(frozen=True)
class DefectIndex:
    """What a folder of defect images holds.

    Attributes:
        root: the folder.
        train: usable picks of ``train.csv``.
        test: usable picks of ``test.csv``.
        skipped: picks and images left out, by reason.
        incomplete: picks and images kept although they are not plain, by what is odd.
    """

    root: Path
    train: tuple[DefectPick, ...]
    test: tuple[DefectPick, ...]
    skipped: Counter[str] = field(default_factory=Counter)
    incomplete: Counter[str] = field(default_factory=Counter)

    def training_part(self, split: str) -> tuple[DefectPick, ...]:
        """Picks to train on.

        Args:
            split: ``official``, all of ``train.csv``; or ``session_disjoint``, those of two thirds of the sessions,
                so that the test picks of the other sessions have no relative among them.

        Raises:
            DatasetError: another split.
        """
        _check_split(split)
        if split == "official":
            return self.train
        return tuple(pick for pick in self.train if not _in_test_session(pick))

    def unseen_sessions(self, split: str) -> tuple[DefectPick, ...]:
        """Test picks of sessions that :meth:`training_part` does not have."""
        seen = {pick.session for pick in self.training_part(split)}
        return tuple(pick for pick in self.test if pick.session not in seen)


def held_out(
    picks: tuple[DefectPick, ...], fraction: float, seed: int, purpose: str
) -> tuple[tuple[DefectPick, ...], tuple[DefectPick, ...]]:
    """Divide training picks by session into those that remain and those held out for a purpose.

    A session falls on the same side whatever the other picks are; draws for different purposes are independent.
    """
    held = {p.session for p in picks if in_held_out_session(p.session, fraction, f"{purpose}/{seed}")}
    return tuple(p for p in picks if p.session not in held), tuple(p for p in picks if p.session in held)


def read_defect_images(data: str | os.PathLike[str], *, limit: int | None = None) -> DefectIndex:
    """Read a folder of defect images.

    Args:
        data: folder with ``train.csv``, ``test.csv`` and ``data/``.
        limit: stop after so many usable picks of each list.

    Raises:
        DatasetError: the folder or a list is missing or damaged, or no pick is usable.
    """
    root = Path(data)
    if not (root / "data").is_dir():
        raise DatasetError(f"{root} has no data/; give the folder with train.csv, test.csv and data/")
    known = {entry.name for entry in os.scandir(root / "data") if entry.is_dir()}
    skipped: Counter[str] = Counter()
    incomplete: Counter[str] = Counter()
    lists = read_lists(root, known, "pick", skipped, incomplete)
    if limit is None:
        incomplete["folder in neither list"] += len(known.difference(*lists))
    train, test = (
        read_entries(ids, lambda name: _read_pick(root / "data" / name, skipped, incomplete), limit)
        for ids in lists
    )
    index = DefectIndex(root, train, test, +skipped, +incomplete)
    if not index.train and not index.test:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in index.skipped.items()) or "none listed"
        raise DatasetError(f"{root} has no usable pick ({reasons}); check the folder and its lists")
    return index


def _read_pick(folder: Path, skipped: Counter[str], incomplete: Counter[str]) -> DefectPick | None:
    if not folder.is_dir():
        skipped["pick without a folder"] += 1
        return None
    files = {entry.name for entry in os.scandir(folder) if entry.is_file()}
    stems = sorted({Path(name).stem for name in files if name.endswith((".jpg", ".json"))})
    views = [view for stem in stems if (view := _read_view(folder, stem, files, skipped, incomplete))]
    if not views:
        skipped["pick without a usable image"] += 1
        return None
    incomplete["pick whose images have different labels"] += len({view.label for view in views}) > 1
    return DefectPick(folder.name, tuple(views))


def read_defect_view(image: Path) -> DefectView | None:
    """One image of a pick with the annotation beside it; None where there is none that can be used."""
    files = {image.name, f"{image.stem}.json"}  # the parts are for training alone
    return _read_view(image.parent, image.stem, files, Counter(), Counter())


def _read_view(
    folder: Path, stem: str, files: set[str], skipped: Counter[str], incomplete: Counter[str]
) -> DefectView | None:
    if f"{stem}.jpg" not in files:
        skipped["annotation without an image"] += 1
        return None
    if f"{stem}.json" not in files:
        skipped["image without an annotation"] += 1
        return None
    try:
        entry = read_json(folder / f"{stem}.json", MAX_JSON_BYTES)
    except DatasetError:
        skipped["annotation not readable"] += 1
        return None
    label = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(label, str) or label not in LABELS:
        skipped["image with a label outside the set"] += 1
        return None
    incomplete["annotation with the id of another image"] += _plain_id(entry.get("id")) != stem
    polygon, problem = _parse_polygon(entry.get("polygon"))
    if problem is not None:
        incomplete[problem] += 1
    sublabel = entry.get("sublabel")
    name = stem.removeprefix(f"{folder.name}_")
    return DefectView(
        name,
        folder / f"{stem}.jpg",
        LABELS.index(label),
        sublabel if isinstance(sublabel, str) else "",
        polygon,
        folder / f"{stem}{PARTS}" if f"{stem}{PARTS}" in files else None,
    )


def _plain_id(value: Any) -> str:
    """An annotation's id, which may end with ``.jpg``."""
    return str(value).removesuffix(".jpg")


def _parse_polygon(points: Any) -> tuple[NDArray[np.float32] | None, str | None]:
    """Outline as float32 ``[P, 2]``, or what is odd about it."""
    if points is None or points == []:
        return None, "image without a polygon"
    malformed = None, "image with a malformed polygon"
    if not isinstance(points, list) or not 3 <= len(points) <= MAX_POLYGON_POINTS:
        return malformed
    try:
        polygon = np.asarray(points, dtype=np.float32)
    except (TypeError, ValueError):
        return malformed
    usable = polygon.shape == (len(points), 2) and bool((np.abs(polygon) < MAX_COORDINATE).all())
    return (polygon, None) if usable else malformed


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise DatasetError(f"split {split!r} is unknown; give one of {', '.join(SPLITS)}")


def _in_test_session(pick: DefectPick) -> bool:
    return in_held_out_session(pick.session, SESSION_TEST_FRACTION, "session-disjoint")
