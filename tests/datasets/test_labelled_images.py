"""Folders of classes: with and without splits, given classes, what is left out, and the Grocery Store data."""

from __future__ import annotations

from pathlib import Path

import pytest

from mca_perception.datasets.labelled_images import read_labelled_images
from mca_perception.errors import DatasetError
from tests.support.labelled_images import write_colour_classes


def test_a_folder_of_classes(tmp_path: Path) -> None:
    write_colour_classes(tmp_path, per_class=3, classes=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    found = read_labelled_images(tmp_path)
    assert found.classes == ("green", "red")
    assert found.labels.tolist() == [0] * 3 + [1] * 3
    assert found.relative(4) == "red/1.png"
    assert found.skipped == {"class folder without images": 1}


def test_splits_and_given_classes(tmp_path: Path) -> None:
    write_colour_classes(tmp_path / "train", per_class=2, classes=3)
    write_colour_classes(tmp_path / "val", per_class=1, classes=4)
    train = read_labelled_images(tmp_path)
    assert train.relative(0) == "train/blue/0.png"
    val = read_labelled_images(tmp_path, "val", classes=train.classes)
    assert (len(val.paths), val.classes) == (3, train.classes)
    assert val.skipped == {"image of a class that is not trained on": 1}


@pytest.mark.parametrize(
    ("split", "classes", "message"),
    [
        (None, 1, "gives 2 images of 1 classes"),
        (None, 0, "gives 0 images of 0 classes"),
        ("val", 2, "has no folder val"),
    ],
)
def test_what_cannot_be_told_apart_is_named(tmp_path: Path, split, classes, message) -> None:
    write_colour_classes(tmp_path, per_class=2, classes=classes)
    with pytest.raises(DatasetError, match=message):
        read_labelled_images(tmp_path, split)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is no folder"):
        read_labelled_images(tmp_path / "none")


def test_the_grocery_store_data(shared_data: Path) -> None:
    found = read_labelled_images(shared_data / "grocery", "val")
    assert (len(found.paths), len(found.classes)) == (296, 60)
    assert found.relative(0).startswith("val/")
