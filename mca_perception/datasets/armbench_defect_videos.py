"""Reader of ARMBench's defect videos: ``train.csv``, ``test.csv``, ``videos/<id>.mp4``, ``annotations/<id>.json``.

A clip has two independent bits, open and deconstruction; there is no multi-pick class (specification of ARMBench,
section 1.4).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.armbench import read_json
from mca_perception.datasets.defect_ids import read_entries, read_lists, session_of
from mca_perception.errors import DatasetError

__all__ = [
    "BITS",
    "CLIP_LABELS",
    "FRAME_CROP",
    "FRAME_SIZE",
    "ClipIndex",
    "DefectClip",
    "clip_frames",
    "read_defect_clips",
    "sample_clip",
]

BITS = ("open", "deconstruction")
CLIP_LABELS = {"nominal": (False, False), "open": (True, False), "deconstruction": (False, True)}
"""Bits of a clip by its label."""

FRAME_CROP = (100, 80, 850, 650)
"""Part of a frame that is used, x1, y1, x2, y2 in pixels, as published."""

FRAME_SIZE = 320
"""Side that this part is resized to, as published."""

MAX_JSON_BYTES = 1_000_000
MAX_FRAMES = 10_000


@dataclass(frozen=True)
class DefectClip:
    """One clip: its id, video file, the two :data:`BITS`, and the frame that shows the defect first, where known."""

    id: str
    video: Path
    bits: tuple[bool, bool]
    first_visible: int | None = None

    @property
    def session(self) -> str:
        """What the clip must share a side of a split with."""
        return session_of(self.id)


@dataclass(frozen=True)
class ClipIndex:
    """Usable clips of both lists, what was left out and what was repaired, by reason."""

    root: Path
    train: tuple[DefectClip, ...]
    test: tuple[DefectClip, ...]
    skipped: Counter[str] = field(default_factory=Counter)
    incomplete: Counter[str] = field(default_factory=Counter)


def read_defect_clips(data: str | os.PathLike[str], *, limit: int | None = None) -> ClipIndex:
    """Read a folder of defect videos; the videos themselves are not opened.

    Args:
        data: folder with ``train.csv``, ``test.csv``, ``videos/`` and ``annotations/``.
        limit: stop after so many usable clips of each list.

    Raises:
        DatasetError: a folder or a list is missing or damaged, or no clip is usable.
    """
    root = Path(data)
    for name in ("videos", "annotations"):
        if not (root / name).is_dir():
            raise DatasetError(
                f"{root} has no {name}/; give the folder with train.csv, test.csv, videos/ and annotations/"
            )
    known = {Path(entry.name).stem for entry in os.scandir(root / "annotations")}
    skipped: Counter[str] = Counter()
    incomplete: Counter[str] = Counter()
    train, test = (
        read_entries(ids, lambda name: _read_clip(root, name, skipped), limit)
        for ids in read_lists(root, known, "clip", skipped, incomplete)
    )
    index = ClipIndex(root, train, test, +skipped, +incomplete)
    if not index.train and not index.test:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in index.skipped.items()) or "none listed"
        raise DatasetError(f"{root} has no usable clip ({reasons}); check the folder and its lists")
    return index


def _read_clip(root: Path, name: str, skipped: Counter[str]) -> DefectClip | None:
    video = root / "videos" / f"{name}.mp4"
    if not video.is_file() or not video.stat().st_size:
        skipped["clip without a video"] += 1
        return None
    try:
        entry = read_json(root / "annotations" / f"{name}.json", MAX_JSON_BYTES)
    except DatasetError:
        skipped["annotation missing or not readable"] += 1
        return None
    label = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(label, str) or label not in CLIP_LABELS:
        skipped["clip with a label outside the set"] += 1
        return None
    first = entry.get("first_visible")
    known = isinstance(first, int) and not isinstance(first, bool) and 0 <= first < MAX_FRAMES
    return DefectClip(name, video, CLIP_LABELS[label], first if known else None)


def clip_frames(path: str | os.PathLike[str]) -> Iterator[NDArray[np.uint8]]:
    """Frames of a video in order, each cut to :data:`FRAME_CROP` and resized as published.

    Yields:
        uint8 ``[320, 320, 3]`` RGB.

    Raises:
        DatasetError: the file is no video, has no frame or over 10,000, or frames smaller than the part that is used.
    """
    return map(_resized, _cut_frames(path))


def sample_clip(path: str | os.PathLike[str], count: int) -> NDArray[np.uint8]:
    """``count`` frames spread evenly over a video; a shorter video repeats some.

    The container's own frame count is not trusted: frames are decoded in order, and only as many kept as are needed.

    Returns:
        uint8 ``[count, 320, 320, 3]``.

    Raises:
        DatasetError: as for :func:`clip_frames`.
    """
    kept: list[NDArray[np.uint8]] = []
    stride = 1
    for number, frame in enumerate(_cut_frames(path)):
        if number % stride == 0:
            kept.append(frame.copy())  # without the rest of a frame that may be large
            if len(kept) >= 2 * count:  # twice as coarse from here on
                kept, stride = kept[::2], stride * 2
    places = np.linspace(0, len(kept) - 1, count).round().astype(int)
    return np.stack([_resized(kept[place]) for place in places])


def _cut_frames(path: str | os.PathLike[str]) -> Iterator[NDArray[np.uint8]]:
    """The part that is used of every frame, ``[570, 750, 3]`` BGR."""
    x1, y1, x2, y2 = FRAME_CROP
    capture = cv2.VideoCapture(os.fspath(path))
    try:
        if not capture.isOpened():
            raise DatasetError(
                f"{path} cannot be opened as a video; copy it again or take it out of the list"
            )
        for count in range(MAX_FRAMES + 1):
            found, frame = capture.read()
            if not found:
                if count == 0:
                    raise DatasetError(
                        f"{path} has no frame that can be decoded; copy it again or take it out"
                    )
                return
            if count == MAX_FRAMES:
                raise DatasetError(f"{path} has over {MAX_FRAMES:,} frames; cut it to the pick")
            height, width = frame.shape[:2]
            if height < y2 or width < x2:
                raise DatasetError(
                    f"{path} has {width} x {height} pixels, at least {x2} x {y2} are needed; use the original video"
                )
            yield np.asarray(frame[y1:y2, x1:x2], np.uint8)
    finally:
        capture.release()


def _resized(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB ``[320, 320, 3]`` of a cut frame."""
    small = cv2.resize(frame, (FRAME_SIZE, FRAME_SIZE), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2RGB), np.uint8)
