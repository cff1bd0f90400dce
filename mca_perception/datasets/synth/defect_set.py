"""``mca synth defects``: picks with and without defects, several views each, in ARMBench's defect layout."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.armbench_defects import PARTS
from mca_perception.datasets.synth import defect_scenes as scenes
from mca_perception.datasets.synth import writer
from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.defect_clips import write_clip
from mca_perception.datasets.synth.effects import encode_jpeg
from mca_perception.datasets.synth.pick_set import product_pools
from mca_perception.errors import DatasetError

SETTINGS_FILE = "synth-defects.json"
VIDEO_FOLDER = "video"
SHARES = {scenes.NOMINAL: 0.7, scenes.MULTI_PICK: 0.15, scenes.PACKAGE_DEFECT: 0.15}
VIEWS = (3, 6)
_ATTEMPTS = 8
_EPOCH_MS = 1_650_000_000_000
_MISSING_POLYGON_SHARE = 0.02
_FIRST_STATION, _STATIONS = 21, 8


@dataclass(frozen=True)
class DefectSettings:
    """Everything that decides the content of a set of defect picks."""

    out: Path
    count: int
    seed: int
    products: int | None = None
    test_fraction: float = 0.3
    videos: bool = False

    def check(self) -> None:
        """Raise DatasetError for settings out of range."""
        writer.check_count("--count", self.count)
        writer.check_seed("--seed", self.seed)
        if self.products is not None:
            writer.check_count("--products", self.products)
        if not 0 <= self.test_fraction <= 1:
            raise DatasetError(f"--test-fraction {self.test_fraction:g}: must be 0 to 1")

    def catalogue(self) -> Catalogue:
        """The catalogue of these settings: by default a product for every third pick, at least 200."""
        return Catalogue(self.seed, max(200, self.count // 3) if self.products is None else self.products)


@dataclass(frozen=True)
class SessionPlan:
    """Session ``index`` with picks ``first`` .. ``first + picks - 1`` from the products of one side of the split."""

    index: int
    first: int
    picks: int
    test: bool


def plan_sessions(settings: DefectSettings) -> Iterator[SessionPlan]:
    """Sessions of 4 to 12 picks that add up to ``count``, with the wanted share of test picks."""
    rng = np.random.default_rng([settings.seed, 31])
    first = tested = index = 0
    while first < settings.count:
        number = min(int(rng.integers(4, 13)), settings.count - first)
        test = tested + number / 2 < settings.test_fraction * (first + number)
        yield SessionPlan(index, first, number, test)
        first, tested, index = first + number, tested + number * test, index + 1


def pick_id(seed: int, session: int, number: int) -> str:
    """An id as ARMBench writes them: 21 digits, leading zeros, the session's time at the end."""
    shift = int.from_bytes(hashlib.blake2b(f"defects/{seed}".encode(), digest_size=4).digest(), "big")
    return (
        f"{_FIRST_STATION + session % _STATIONS:03d}{number:03d}00{_EPOCH_MS + shift + 60_000 * session:013d}"
    )


def write_session(settings: DefectSettings, catalogue: Catalogue, plan: SessionPlan) -> list[dict[str, Any]]:
    """Worker task: write the picks of a session; returns the id, the side and the labels of each."""
    pool = product_pools(catalogue.seed, len(catalogue), settings.test_fraction)[int(plan.test)]
    station = scenes.Station((settings.seed, 32, plan.index))
    written = []
    for number in range(plan.picks):
        name = pick_id(settings.seed, plan.index, number)
        rng = np.random.default_rng([settings.seed, 33, plan.first + number])
        label = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        held = scenes.hold(catalogue, pool, label, rng)
        folder = settings.out / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        labels = _write_pick(folder, held, station, rng)
        entry = {"id": name, "test": plan.test, "labels": labels, "sublabel": held.sublabel, "clip": None}
        if settings.videos:
            clip_rng = np.random.default_rng([settings.seed, 34, plan.first + number])
            entry["clip"] = write_clip(settings.out / VIDEO_FOLDER, name, held, station, clip_rng)
        written.append(entry)
    return written


def _write_pick(
    folder: Path, held: scenes.Held, station: scenes.Station, rng: np.random.Generator
) -> list[str]:
    """Write the views of a pick, or keep them; a defect shows in at least one of them where it can be seen at all."""
    count = int(rng.integers(VIEWS[0], VIEWS[1] + 1))
    if (kept := _kept_labels(folder, count)) is not None:
        return kept
    sure = int(rng.integers(count)) if held.label != scenes.NOMINAL else -1
    labels = []
    for view in range(count):
        camera = scenes.CAMERAS[(view + int(rng.integers(2))) % len(scenes.CAMERAS)]
        picture = scenes.photograph(held, station, camera, rng)
        for _ in range(_ATTEMPTS if view == sure else 0):
            if picture.shown:
                break
            picture = scenes.photograph(held, station, camera, rng)
        label = held.label if picture.shown else scenes.NOMINAL
        labels.append(label)
        stem = f"{folder.name}_{view}"
        writer.write_bytes(folder / f"{stem}.jpg", encode_jpeg(picture.image, picture.jpeg_quality))
        writer.write_bytes(folder / f"{stem}{PARTS}", cv2.imencode(".png", picture.parts)[1].tobytes())
        entry = {
            "id": f"{stem}.jpg" if view % 2 else stem,
            "label": label,
            "sublabel": held.sublabel if picture.shown else scenes.NOMINAL,
            "polygon": [] if rng.random() < _MISSING_POLYGON_SHARE else outline(picture.mask),
        }
        writer.write_json(folder / f"{stem}.json", entry)
    return labels


def _kept_labels(folder: Path, count: int) -> list[str] | None:
    """Labels of the views of a pick that an earlier run finished; None for others. Labels are written last."""
    files = [folder / f"{folder.name}_{view}.json" for view in range(count)]
    return (
        [json.loads(file.read_bytes())["label"] for file in files] if all(map(Path.is_file, files)) else None
    )


def outline(mask: NDArray[np.bool_]) -> list[list[float]]:
    """One polygon around all that is held: its outline, or the hull of its parts; empty for an empty mask."""
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    contours, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    large = [contour for contour in contours if cv2.contourArea(contour) > 0.02 * mask.sum()]
    if not large:
        return []
    contour = large[0] if len(large) == 1 else cv2.convexHull(np.concatenate(large))
    points = cv2.approxPolyDP(contour, 0.8, True)[:, 0]
    return [[float(x), float(y)] for x, y in points] if len(points) >= 3 else []


def write_defects(
    settings: DefectSettings, workers: int, progress: writer.Progress | None = None
) -> dict[str, Any]:
    """Write a set of defect picks below ``settings.out``.

    Returns:
        Figures: picks, test picks, sessions, images, and picks and images by label.

    Raises:
        DatasetError: settings out of range, or the folder holds something else.
    """
    settings.check()
    writer.check_count("--workers", workers, writer.MAX_WORKERS)
    catalogue = settings.catalogue()
    product_pools(catalogue.seed, len(catalogue), settings.test_fraction)
    record = {
        "command": "defects",
        "count": settings.count,
        "seed": settings.seed,
        "products": len(catalogue),
        "test_fraction": settings.test_fraction,
        "videos": settings.videos,
    }
    writer.claim_folder(settings.out, record, SETTINGS_FILE)
    plans = list(plan_sessions(settings))
    started = perf_counter()
    sessions = writer.run_parallel(
        partial(write_session, settings), plans, len(plans), catalogue, workers, progress
    )
    elapsed = perf_counter() - started
    entries = sorted((entry for session in sessions for entry in session), key=lambda entry: str(entry["id"]))
    _write_lists(settings.out, entries)
    clips = [entry for entry in entries if entry["clip"] is not None]
    if settings.videos:
        _write_lists(settings.out / VIDEO_FOLDER, clips)
    images = Counter(label for entry in entries for label in entry["labels"])
    sublabels = Counter(entry["sublabel"] for entry in entries)
    return {
        "folder": str(settings.out),
        "picks": settings.count,
        "test_picks": sum(entry["test"] for entry in entries),
        "sessions": len(plans),
        "products": len(catalogue),
        "images": sum(images.values()),
        "images_by_label": json.dumps(dict(sorted(images.items()))),
        "picks_by_sublabel": json.dumps(dict(sorted(sublabels.items()))),
        "clips": len(clips),
        "picks_per_second": round(settings.count / max(elapsed, 1e-9), 2),
    }


def _write_lists(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Write ``train.csv`` and ``test.csv``: ids, one per line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, test in (("train", False), ("test", True)):
        ids = [str(entry["id"]) for entry in entries if entry["test"] is test]
        writer.write_bytes(folder / f"{name}.csv", "".join(f"{i}\n" for i in ids).encode())
