"""Readers of image-text pairs: three layouts, confinement, bounds, and what is skipped."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mca_perception.datasets import pairs
from mca_perception.datasets.pairs import Item, read_pairs
from mca_perception.datasets.synth.pick_set import PickSettings, write_picks
from mca_perception.errors import DatasetError
from tests.support.datasets import write_image

GREY = np.full((8, 8, 3), 90, np.uint8)


def write_lines(folder: Path, *lines: Any) -> Path:
    for name in ("a.png", "b.png"):
        write_image(folder / name, GREY)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "pairs.jsonl").write_text(text)
    return folder


def test_lines_of_one_image_make_one_item(tmp_path: Path) -> None:
    folder = write_lines(
        tmp_path,
        {"image": "a.png", "text": " one "},
        {"image": "a.png", "text": "two", "split": "val"},
        "",
        {"image": "b.png", "text": "three"},
    )
    index = read_pairs(folder)
    a, b = (tmp_path.resolve() / name for name in ("a.png", "b.png"))
    assert index.items == (Item("a.png", (a,), ("one", "two"), "val"), Item("b.png", (b,), ("three",)))
    assert not index.skipped


def test_item_gathers_images_and_texts(tmp_path: Path) -> None:
    lines = [{"image": "a.png", "text": "x", "item": "i"}, {"image": "b.png", "text": "x", "item": "i"}]
    (item,) = read_pairs(write_lines(tmp_path, *lines)).items
    assert [path.name for path in item.images] == ["a.png", "b.png"]
    assert item.texts == ("x",)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line that is not JSON"),
        ("[1]", "line that is no object"),
        ('{"image": ["a.png"], "text": "t"}', "line with a field that is no string"),
        ({"image": "../outside.png", "text": "t"}, "file outside the folder"),
        ({"image": "/etc/hostname", "text": "t"}, "file outside the folder"),
        ({"image": "absent.png", "text": "t"}, "file missing"),
        ({"image": "a\0.png", "text": "t"}, "file missing"),
        ({"image": "a.png", "text": "   "}, "empty text"),
        ({"image": "a.png", "text": "t" * 20_001}, "text of more than 20,000 characters"),
        ({}, "line without image and text"),
    ],
)
def test_unusable_lines_are_counted_by_reason(tmp_path: Path, line: Any, reason: str) -> None:
    folder = tmp_path / "data"
    write_image(tmp_path / "outside.png", GREY)
    index = read_pairs(write_lines(folder, line, {"image": "b.png", "text": "fine"}))
    assert [item.id for item in index.items] == ["b.png"]
    assert index.skipped == {reason: 1}


def test_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    write_image(tmp_path / "outside.png", GREY)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    write_lines(folder, {"image": "link.png", "text": "t"}, {"image": "a.png", "text": "t"})
    assert read_pairs(folder).skipped == {"file outside the folder": 1}


def test_long_line_is_skipped_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "MAX_LINE_BYTES", 64)
    long = {"image": "a.png", "text": "t" * 300}
    index = read_pairs(write_lines(tmp_path, long, {"image": "b.png", "text": "fine"}))
    assert [item.id for item in index.items] == ["b.png"]
    assert index.skipped == {"line of more than 64 bytes": 1}


@pytest.mark.parametrize(
    ("need", "ids"), [(("image",), ["a.png", "b.png"]), (("text",), ["b.png", "line 000000003"])]
)
def test_images_or_texts_alone(tmp_path: Path, need: tuple[str, ...], ids: list[str]) -> None:
    folder = write_lines(tmp_path, {"image": "a.png"}, {"image": "b.png", "text": "t"}, {"text": "u"})
    index = read_pairs(folder, need=need)
    assert [item.id for item in index.items] == ids
    assert index.skipped.total() == 1
    assert len(read_pairs(folder).items) == 1


def test_synthesised_picks_give_reference_images_and_descriptions(tmp_path: Path) -> None:
    write_picks(PickSettings(tmp_path, 2, 4, 40, None, None, 0.5), 1)
    split = json.loads((tmp_path / "train-test-split.json").read_text())
    index = read_pairs(tmp_path)
    names = {name: {item.id for item in index.items if item.split == name} for name in ("train", "test")}
    assert names["train"] == set(split["trainset-objects"])
    assert names["test"] == set(split["testset-objects"])
    assert not index.skipped
    path = next((tmp_path / "Picks").glob("*/container.json"))
    manifest = json.loads(path.read_text())
    texts = {item.id: item.texts for item in index.items}
    for name, entry in manifest.items():
        assert texts[name] == (entry["description"],)
    assert all(1 <= len(item.images) <= 6 for item in index.items)
    path.write_text("{")
    assert read_pairs(tmp_path).skipped["container.json missing or not readable"] == 1


def test_grocery_store_classes(shared_data: Path) -> None:
    index = read_pairs(shared_data / "grocery")
    assert Counter(item.split for item in index.items) == {"iconic": 81, "train": 2640, "val": 296}
    assert not index.skipped
    photo = next(
        item
        for item in index.items
        if item.id.endswith("val/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg")
    )
    assert photo.texts[0].startswith("Golden Delicious has a white juicy pulp")
    apple = next(item for item in index.items if item.id == "Golden-Delicious")
    assert apple.texts[0].startswith("Golden Delicious has a white juicy pulp")
    assert apple.images[0].name == "Golden-Delicious_Iconic.jpg"


def test_class_rows_are_confined(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", GREY)
    (tmp_path / "a.txt").write_text("an apple\n")
    rows = ["Name,0,1,2,3,4", "Apple,0,A,0,/a.png,/a.txt", "Pear,1,A,0,/../b.png,/a.txt", "Short,1"]
    (tmp_path / "classes.csv").write_text("\n".join(rows))
    (tmp_path / "val.txt").write_text("a.png, 0, 0\na.png, 9, 0\n../b.png, 0, 0\n\na.png\n")
    index = read_pairs(tmp_path)
    assert [(item.id, item.texts) for item in index.items] == [
        ("Apple", ("an apple",)),
        ("a.png", ("an apple",)),
    ]
    assert index.skipped == {
        "file outside the folder": 2,
        "row without image and description": 1,
        "photo of a class without a description": 2,
    }


@pytest.mark.parametrize(
    ("content", "message"), [(None, "holds no image-text pairs"), ("", "has no item with")]
)
def test_folder_without_pairs_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_pairs(tmp_path)
