from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mca_perception.datasets.armbench import VIEWS, read_identification
from mca_perception.errors import DatasetError
from mca_perception.identification.index import INDEX_NAME, build_index, load_identification, read_index

TRIANGLE = [[1, 1], [8, 1], [4, 8.5]]


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((10, 12, 3), 120, np.uint8))


def pick(
    root: Path,
    name: str,
    truth: Any = "007",
    views: tuple[str, ...] = VIEWS,
    container: tuple[str, ...] = ("007", "008", "009"),
) -> Path:
    folder = root / "Picks" / name
    folder.mkdir(parents=True)
    for view in views:
        image(folder / f"{view}.jpg")
    (folder / "container.json").write_text(json.dumps({product: {"weight": 1} for product in container}))
    annotation = {"GT_ID": truth, "polygons": {view: [TRIANGLE] for view in views}}
    (folder / "annotation.json").write_text(json.dumps(annotation))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The public layout with every oddity that is known of it."""
    root = tmp_path / "set"
    pick(root, "0001")
    pick(root, "0002", views=VIEWS[:3])
    pick(root, "0003", truth="009")  # whose reference folder is empty
    pick(root, "0004", truth="010", container=("007", "010"))  # without any reference folder
    pick(root, "0005", truth="008", container=("007",))
    pick(root, "0006", views=())
    (pick(root, "0007") / "container.json").write_bytes(b"{damaged")
    (pick(root, "0008") / "annotation.json").unlink()
    (pick(root, "0009") / "container.json").write_text("{}")
    (pick(root, "0010") / "annotation.json").write_text('{"GT_ID": ""}')
    pick(root, "0011", truth=7, container=("7",))
    for number in range(1, 12):
        image(root / "Reference_Images" / "007" / f"{number}.jpg")
    image(root / "Reference_Images" / "008" / "1.jpg")
    (root / "Reference_Images" / "009").mkdir()
    splits = {
        "trainset": ["0001", "0002", "0006", "0007"],
        "testset": ["0003", "0004", "0005", "0001", "0404"],
        "trainset-objects": ["007"],
        "testset-objects": ["009", "010", "008"],
    }
    (root / "train-test-split.pickle").write_bytes(pickle.dumps(splits, protocol=2))
    return root


def test_summary_counts_what_is_there_and_what_is_left_out(root) -> None:
    summary = build_index(root)
    assert (summary.picks, summary.products, summary.references) == (6, 2, 12)
    assert summary.skipped == {
        "pick without images": 1,
        "container.json missing or not readable": 1,
        "annotation.json missing or not readable": 1,
        "container.json empty or too long": 1,
        "annotation.json without GT_ID": 1,
        "pick folder missing": 1,
    }
    assert summary.incomplete == {
        "product with an empty reference folder": 1,
        "pick without all views": 1,
        "pick whose product has no references": 3,
        "pick whose product is not in its container": 1,
        "pick in several splits": 1,
    }
    assert summary.views == {"PickRGB": 6, "ToteWallRGB": 6, "OnArmLowRGB": 6, "FarTrayRGB": 5}
    assert summary.splits == {"trainset": 2, "testset": 4}
    assert summary.manifest_sizes == (1, 3, 3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"split": "all"},
        {"split": "testset"},
        {"split": "trainset"},
        {"limit": 2},
        {"split": "testset", "limit": 1},
    ],
)
def test_index_holds_what_the_folder_holds(root, options) -> None:
    build_index(root)
    expected = read_identification(root, **options)
    found = read_index(root / INDEX_NAME, root, **options)
    assert found.picks == expected.picks
    assert (found.references, found.splits, found.root) == (
        expected.references,
        expected.splits,
        expected.root,
    )
    if "split" in options and "limit" not in options and options["split"] != "all":
        assert found.skipped == expected.skipped
        assert +found.incomplete == +expected.incomplete


def test_index_is_read_in_place_of_the_picks(root) -> None:
    build_index(root)
    for file in root.rglob("*.json"):
        if file.parent != root:
            file.unlink()
    assert [p.id for p in load_identification(root).picks] == ["0001", "0002", "0003", "0004", "0005", "0011"]


def test_moved_folder_keeps_its_index(root, tmp_path) -> None:
    build_index(root)
    moved = root.rename(tmp_path / "elsewhere")
    found = read_index(moved / INDEX_NAME, moved)
    assert found.picks[0].views["PickRGB"] == moved / "Picks" / "0001" / "PickRGB.jpg"
    assert found.references["008"] == [moved / "Reference_Images" / "008" / "1.jpg"]


@pytest.mark.parametrize(
    "change",
    [
        lambda root: pick(root, "0099"),
        lambda root: (root / "Picks" / "0001").rename(root / "0001"),
        lambda root: (root / "Reference_Images" / "new").mkdir(),
        lambda root: (root / "train-test-split.json").write_text('{"testset": ["0001"]}'),
    ],
)
def test_index_of_another_state_is_not_used(root, change, caplog) -> None:
    build_index(root)
    change(root)
    with pytest.raises(DatasetError, match="another state"):
        read_index(root / INDEX_NAME, root)
    found = load_identification(root)
    assert "reading the folder instead" in caplog.text
    assert found.picks == read_identification(root).picks


def cut(text: str) -> str:
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"cannot be read|damaged"),
        (lambda text: "", "damaged"),
        (lambda text: "[]\n", "damaged"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "damaged"),
        (
            lambda text: "\n".join(
                line for line in text.splitlines() if '"0003"' not in line or "splits" in line
            ),
            "damaged",
        ),
        (lambda text: text.replace('"version": 1', '"version": 2'), "not an index"),
        (lambda text: text.replace('"views"', '"sights"'), "damaged"),
        (lambda text: text.replace("Reference_Images/008", "../../008"), "damaged"),
        (lambda text: text.replace('{"pick": "0001"', '{"pick": "../0001"'), "damaged"),
    ],
)
def test_damaged_index_is_refused(root, damage, message) -> None:
    build_index(root)
    path = root / INDEX_NAME
    path.write_text(damage(path.read_text()))
    with pytest.raises(DatasetError, match=message):
        read_index(path, root)


def test_unknown_or_unusable_split_is_refused(root) -> None:
    build_index(root)
    with pytest.raises(DatasetError, match="no split 'val'"):
        read_index(root / INDEX_NAME, root, split="val")
    with pytest.raises(DatasetError, match="no usable pick"):
        read_index(root / INDEX_NAME, root, split="trainset-objects")


def test_folder_without_usable_picks_leaves_no_index(tmp_path) -> None:
    pick(tmp_path, "0001", views=())
    (tmp_path / "Reference_Images").mkdir()
    with pytest.raises(DatasetError, match=r"no usable pick \(1 pick without images\)"):
        build_index(tmp_path)
    assert not list(tmp_path.glob("*index*"))
    with pytest.raises(DatasetError, match="has no Picks/"):
        build_index(tmp_path / "Picks")


def test_index_that_cannot_be_written_is_an_error(root, tmp_path) -> None:
    with pytest.raises(DatasetError, match="cannot be written"):
        build_index(root, tmp_path / "no folder" / "index")


class Attack:
    """Runs a command when it is unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_malicious_split_is_refused_and_not_executed(root, tmp_path) -> None:
    content = pickle.dumps({"trainset": ["0001"], "testset": [Attack(tmp_path / "executed")]})
    pickle.loads(content)
    assert (tmp_path / "executed").exists()
    (tmp_path / "executed").unlink()
    (root / "train-test-split.pickle").write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read safely"):
        build_index(root)
    assert not (tmp_path / "executed").exists()
    assert not (root / "train-test-split.json").exists()


def test_skips_are_counted_for_their_split_only(root) -> None:
    build_index(root)
    found = read_index(root / INDEX_NAME, root, split="testset")
    assert found.skipped == Counter({"pick folder missing": 1})
