"""Small sets of defect images in ARMBench's layout: plain ones whose defects are coloured, and one of every oddity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mca_perception.datasets.armbench_defects import LABELS

SQUARE = [[8, 8], [40, 8], [40, 40], [8, 40]]


def pick_id(number: int, session: int = 0) -> str:
    """An id of 21 digits with leading zeros."""
    return f"{21 + number % 7:03d}{number:03d}00{1_650_000_000_000 + session:013d}"


def write_view(folder: Path, view: str, label: str = "nominal", **changes: Any) -> Path:
    """Write one image and its annotation; a defect is a coloured patch. ``changes`` are fields of the annotation."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{folder.name}_{view}"
    rng = np.random.default_rng([int(folder.name) % 2**32, *view.encode()])
    image = rng.integers(90, 130, (48, 48, 3)).astype(np.uint8)
    image[8:40, 8:40] = (150, 150, 150)
    if label == "multi_pick":
        image[8:40, 24:40] = (200, 60, 60)
    elif label == "package_defect":
        image[18:30, 10:38] = (20, 20, 20)
    cv2.imwrite(str(folder / f"{stem}.jpg"), image)
    entry = {"id": stem, "label": label, "sublabel": label, "polygon": SQUARE, **changes}
    (folder / f"{stem}.json").write_text(json.dumps(entry))
    return folder / f"{stem}.json"


def write_defect_set(root: Path, train: int = 24, test: int = 12, views: int = 3) -> Path:
    """Write picks of the three labels in turn; the first view of each looks nominal."""
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for number in range(train + test):
        part = "train" if number < train else "test"
        name = pick_id(number, session=number // 2 + (10_000 if part == "test" else 0))
        label = LABELS[(number // 2) % 3]
        for view in range(views):
            write_view(root / "data" / name, str(view), label if view else "nominal")
        lists[part].append(name)
    for part, names in lists.items():
        (root / f"{part}.csv").write_text("\n".join(names) + "\n")
    return root
