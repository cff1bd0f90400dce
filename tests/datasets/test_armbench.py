from __future__ import annotations

import json
import os
import pickle
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mca_perception.datasets.armbench import VIEWS, read_identification, read_splits
from mca_perception.errors import DatasetError

TRIANGLE = [[1, 1], [8, 1], [4, 8.5]]


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((10, 12, 3), 120, np.uint8))


def pick(
    root: Path, name: str, truth: Any = "007", views: tuple[str, ...] = VIEWS, **annotation: Any
) -> Path:
    folder = root / "Picks" / name
    folder.mkdir(parents=True, exist_ok=True)
    for view in views:
        image(folder / f"{view}.jpg")
    (folder / "container.json").write_text(json.dumps({"007": {"weight": 1}, "008": {}, "009": {}}))
    polygons = {view: [TRIANGLE] for view in views}
    (folder / "annotation.json").write_text(json.dumps({"GT_ID": truth, "polygons": polygons, **annotation}))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    pick(tmp_path, "0001")
    for number in range(1, 12):
        image(tmp_path / "Reference_Images" / "007" / f"{number}.jpg")
    image(tmp_path / "Reference_Images" / "008" / "1.jpg")
    (tmp_path / "Reference_Images" / "009").mkdir()
    return tmp_path


def test_reads_picks_with_string_ids(root) -> None:
    index = read_identification(root)
    (found,) = index.picks
    assert (found.id, found.product_id, found.container) == ("0001", "007", ("007", "008", "009"))
    assert tuple(found.views) == VIEWS
    assert found.polygons["PickRGB"] == [TRIANGLE]
    assert list(index.references) == ["007", "008"]
    assert [p.stem for p in index.references["007"]] == [str(n) for n in range(1, 12)]
    assert not index.skipped
    assert index.incomplete["product with an empty reference folder"] == 1


@pytest.mark.parametrize(
    "polygons",
    [
        {"PickRGB": [TRIANGLE]},
        {"PickRGB.jpg": [TRIANGLE]},
        {"PickRGB": TRIANGLE},
        {"PickRGB": [TRIANGLE, [[1, 2]], "x"]},
    ],
)
def test_polygon_spellings(root, polygons) -> None:
    pick(root, "0001", polygons=polygons)
    assert read_identification(root).picks[0].polygons == {"PickRGB": [TRIANGLE]}


@pytest.mark.parametrize(
    "polygons",
    [
        {},
        None,
        {"PickRGB": None},
        {"PickRGB": [[[1, 1], [2, float("nan")], [3, 3]]]},
        {"PickRGB": [[[1, 1], [2, 10**400], [3, 3]]]},
    ],
)
def test_missing_polygons_are_counted_and_kept(root, polygons) -> None:
    pick(root, "0001", polygons=polygons)
    index = read_identification(root)
    assert index.picks[0].polygons == {}
    assert index.incomplete["pick with views without polygon"] == 1


def test_incomplete_picks_are_kept_and_counted(root) -> None:
    pick(root, "0002", truth="009", views=("PickRGB",))
    pick(root, "0003", truth="elsewhere")
    index = read_identification(root)
    assert [p.id for p in index.picks] == ["0001", "0002", "0003"]
    assert index.incomplete["pick without all views"] == 1
    assert index.incomplete["pick whose product has no references"] == 2
    assert index.incomplete["pick whose product is not in its container"] == 1


def test_numeric_truth_becomes_a_string(root) -> None:
    pick(root, "0001", truth=7)
    assert read_identification(root).picks[0].product_id == "7"


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def overwrite(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove("container.json"), "container.json missing or not readable"),
        (overwrite("container.json", "{"), "container.json missing or not readable"),
        (overwrite("container.json", "[1]"), "container.json missing or not readable"),
        (overwrite("container.json", "{}"), "container.json empty or too long"),
        (remove("annotation.json"), "annotation.json missing or not readable"),
        (overwrite("annotation.json", "[" * 100_000), "annotation.json missing or not readable"),
        (overwrite("annotation.json", "{}"), "annotation.json without GT_ID"),
        (overwrite("annotation.json", '{"GT_ID": ""}'), "annotation.json without GT_ID"),
        (lambda folder: [p.unlink() for p in folder.glob("*.jpg")], "pick without images"),
    ],
)
def test_unusable_picks_are_counted(root, damage, reason) -> None:
    damage(pick(root, "0002"))
    index = read_identification(root)
    assert [p.id for p in index.picks] == ["0001"]
    assert index.skipped == Counter({reason: 1})


def test_split_selects_picks(root) -> None:
    pick(root, "0002")
    (root / "train-test-split.json").write_text(
        json.dumps({"trainset": ["0001"], "testset": ["0002", "0404"]})
    )
    index = read_identification(root, split="testset")
    assert [p.id for p in index.picks] == ["0002"]
    assert index.skipped == Counter({"pick folder missing": 1})
    assert index.splits["trainset"] == {"0001"}
    assert len(read_identification(root, split="all").picks) == 2
    assert len(read_identification(root, limit=1).picks) == 1
    with pytest.raises(DatasetError, match="no split 'val'"):
        read_identification(root, split="val")


@pytest.mark.parametrize("name", ["../Picks/0001", "../../other/Picks/0001", "/etc", "..", "."])
def test_split_cannot_lead_out_of_the_folder(root, name) -> None:
    (root / "train-test-split.json").write_text(json.dumps({"testset": ["0001", name]}))
    assert [p.id for p in read_identification(root, split="testset").picks] == ["0001"]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("container", [list, tuple, set, frozenset])
def test_pickled_split_is_converted_once(root, protocol, container) -> None:
    content = OrderedDict(trainset=container(["0003"]), testset=container(["0001", "0002"]))
    (root / "train-test-split.pickle").write_bytes(pickle.dumps(content, protocol))
    assert read_splits(root) == {"trainset": {"0003"}, "testset": {"0001", "0002"}}
    assert json.loads((root / "train-test-split.json").read_text())["testset"] == ["0001", "0002"]
    (root / "train-test-split.pickle").unlink()
    assert read_splits(root)["trainset"] == {"0003"}


class Attack:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps({"testset": [Attack()]}), b"damaged", b"", pickle.dumps(np.arange(3)), pickle.dumps([1])],
)
def test_harmful_or_damaged_pickles_are_refused(root, content, monkeypatch) -> None:
    monkeypatch.chdir(root)
    (root / "train-test-split.pickle").write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot be read safely|must hold lists"):
        read_splits(root)
    assert not (root / "executed").exists()
    assert not (root / "train-test-split.json").exists()


@pytest.mark.parametrize("name", ["Picks", "Reference_Images"])
def test_missing_folders_are_refused(root, name) -> None:
    (root / name).rename(root / "elsewhere")
    with pytest.raises(DatasetError, match=f"no {name}/"):
        read_identification(root)


def test_folder_without_usable_picks_is_refused(root) -> None:
    (root / "Picks" / "0001" / "annotation.json").unlink()
    with pytest.raises(DatasetError, match="no usable pick"):
        read_identification(root)
