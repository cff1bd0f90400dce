"""ARMBench's identification layout with every oddity that is known of the public data."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mca_perception.datasets.armbench import VIEWS

TRIANGLE = [[1, 1], [8, 1], [4, 8.5]]


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((10, 12, 3), 120, np.uint8))


def write_pick(
    root: Path,
    name: str,
    truth: Any = "007",
    views: tuple[str, ...] = VIEWS,
    container: tuple[str, ...] = ("007", "008", "009"),
) -> Path:
    folder = root / "Picks" / name
    folder.mkdir(parents=True)
    for view in views:
        write_picture(folder / f"{view}.jpg")
    (folder / "container.json").write_text(json.dumps({product: {"weight": 1} for product in container}))
    annotation = {"GT_ID": truth, "polygons": {view: [TRIANGLE] for view in views}}
    (folder / "annotation.json").write_text(json.dumps(annotation))
    return folder


def write_odd_pick_set(root: Path) -> None:
    """Eleven pick folders, six of them usable, and references of two products."""
    write_pick(root, "0001")
    write_pick(root, "0002", views=VIEWS[:3])
    write_pick(root, "0003", truth="009")  # whose reference folder is empty
    write_pick(root, "0004", truth="010", container=("007", "010"))  # without any reference folder
    write_pick(root, "0005", truth="008", container=("007",))
    write_pick(root, "0006", views=())
    (write_pick(root, "0007") / "container.json").write_bytes(b"{damaged")
    (write_pick(root, "0008") / "annotation.json").unlink()
    (write_pick(root, "0009") / "container.json").write_text("{}")
    (write_pick(root, "0010") / "annotation.json").write_text('{"GT_ID": ""}')
    write_pick(root, "0011", truth=7, container=("7",))
    for number in range(1, 12):
        write_picture(root / "Reference_Images" / "007" / f"{number}.jpg")
    write_picture(root / "Reference_Images" / "008" / "1.jpg")
    (root / "Reference_Images" / "009").mkdir()
    splits = {
        "trainset": ["0001", "0002", "0006", "0007"],
        "testset": ["0003", "0004", "0005", "0001", "0404"],
        "trainset-objects": ["007"],
        "testset-objects": ["009", "010", "008"],
    }
    (root / "train-test-split.pickle").write_bytes(pickle.dumps(splits, protocol=2))
