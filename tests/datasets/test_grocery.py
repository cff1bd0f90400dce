from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mca_perception.cli.main import main
from mca_perception.datasets.grocery import is_grocery, read_grocery
from mca_perception.errors import DatasetError
from tests.support.bundles import PALETTE, reference_photo, write_colour_bundle
from tests.support.datasets import write_image

HEADER = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image Path (str),Text\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Colours as classes: six iconic images, four photos each to train on and two to test with."""
    root = tmp_path / "shop"
    lines: dict[str, list[str]] = {"train": [], "held": []}
    classes = HEADER
    for number, name in enumerate(PALETTE):
        iconic = f"iconic/{name}.png"
        write_image(root / iconic, reference_photo(name))
        classes += f"{name},{number},Colour,0,/{iconic},/none.txt\n"
        for split, count in (("train", 4), ("held", 2)):
            for i in range(count):
                photo = f"{split}/{name}_{i}.png"
                write_image(root / photo, np.full((40 + i, 44, 3), PALETTE[name], np.uint8))
                lines[split].append(f"{photo}, {number}, 0")
    (root / "classes.csv").write_text(classes)
    for split, rows in lines.items():
        (root / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("count", [0, 1, 3, 9])
def test_references_are_the_iconic_image_and_so_many_photos(root, count) -> None:
    index = read_grocery(root, "held", natural_references=count, seed=5)
    assert len(index.picks) == 12
    assert set(index.references) == set(PALETTE) == set(index.picks[0].container)
    for name, paths in index.references.items():
        assert paths[0] == root / "iconic" / f"{name}.png"
        assert len(paths) == 1 + min(count, 4)
        assert all(path.parent.name == "train" and path.name.startswith(name) for path in paths[1:])
    again = read_grocery(root, "held", natural_references=count, seed=5)
    assert again.references == index.references
    fewer = read_grocery(root, "held", natural_references=max(0, count - 1), seed=5)
    assert all(paths == index.references[name][: len(paths)] for name, paths in fewer.references.items())


def test_reference_photos_of_the_split_itself_are_no_queries(root) -> None:
    index = read_grocery(root, "train", natural_references=1)
    assert len(index.picks) == 24 - 6
    assert index.skipped == {"photo used as a reference": 6}
    used = {path for paths in index.references.values() for path in paths}
    assert not used & {pick.views["PickRGB"] for pick in index.picks}


def test_odd_lines_are_counted(root) -> None:
    with (root / "held.txt").open("a") as stream:
        stream.write("held/red_0.png, 0, 0\nheld/none.png, 0, 0\n../shop/held/red_1.png, 0, 0\n")
        stream.write("held/red_1.png, 99, 0\nheld/red_1.png\n\n")
    with (root / "classes.csv").open("a") as stream:
        stream.write("red,7,Colour,0,/iconic/red.png,\nwhite,8,Colour,0,/iconic/white.png,\nshort,9\n")
    index = read_grocery(root, "held")
    assert len(index.picks) == 12
    assert index.skipped == {
        "photo listed twice": 1,
        "photo missing or outside the folder": 2,
        "photo of a class that classes.csv does not have": 1,
        "line that is not path, class, coarse class": 1,
    }
    assert index.incomplete == {
        "row of classes.csv that is short or repeated": 2,
        "class without an iconic image": 1,
    }
    assert "white" not in index.references


def test_folders_and_lists_that_are_not_there_are_refused(root, tmp_path) -> None:
    assert not is_grocery(tmp_path)
    with pytest.raises(DatasetError, match=r"no classes\.csv"):
        read_grocery(tmp_path, "held")
    for name in ("val", "../held"):
        with pytest.raises(DatasetError, match="there are: held, train"):
            read_grocery(root, name)
    (root / "none.txt").write_text("held/red_0.png, 99, 0\n")
    with pytest.raises(DatasetError, match="no usable photo"):
        read_grocery(root, "none")


def test_shared_data_are_read_whole(shared_data) -> None:
    data = shared_data / "grocery"
    if not is_grocery(data):
        pytest.skip(f"no grocery data in {data}")
    for split, count in (("train", 2640), ("val", 296)):
        index = read_grocery(data, split)
        assert (len(index.picks), len(index.references)) == (count, 81)
        assert not index.skipped
        assert not index.incomplete


@pytest.mark.parametrize("count", [0, 2])
def test_evaluation_writes_its_figures(root, tmp_path, monkeypatch, capsys, count) -> None:
    model, out = write_colour_bundle(tmp_path / "model").path, tmp_path / "out"
    options = ("--data", root, "--split", "held", "--references", count, "--model", model, "--out", out)
    monkeypatch.setattr(sys, "argv", ["mca", "eval", "grocery", *map(str, options)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, capsys.readouterr().err
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["task"], metrics["queries"], metrics["recall@1"]) == ("grocery", 12, 1.0)
    assert metrics["reference_images"] == 6 * (1 + count)
    assert metrics["chance_recall@1"] == pytest.approx(1 / 6)
    assert metrics["data"]["natural_references"] == count
    assert "all products" in (out / "report.md").read_text()
