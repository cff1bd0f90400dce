import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mca_perception.datasets.armbench import read_identification
from mca_perception.datasets.synth.pick_set import PickSettings, plan_containers, product_pools, write_picks
from mca_perception.errors import DatasetError

PickSet = tuple[Path, dict[str, Any]]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_every_pick_has_the_official_files(pick_set: PickSet) -> None:
    out, figures = pick_set
    folders = sorted((out / "Picks").iterdir())
    assert len(folders) == figures["picks"]
    for folder in folders:
        annotation, container = read(folder / "annotation.json"), read(folder / "container.json")
        assert annotation["GT_ID"] in container
        assert all(set(entry) == {"description", "weight", "dimensions"} for entry in container.values())
        views = {path.stem for path in folder.glob("*.jpg")}
        assert "PickRGB" in views
        assert views <= {"PickRGB", "ToteWallRGB", "OnArmLowRGB", "FarTrayRGB"}
        assert views == set(annotation["polygons"])
        for view, polygons in annotation["polygons"].items():
            height, width = cv2.imread(str(folder / f"{view}.jpg")).shape[:2]
            points = np.concatenate([np.array(polygon) for polygon in polygons])
            assert points.min() >= 0
            assert (points.max(0) <= (width, height)).all()
            assert sum(cv2.contourArea(np.array(p, np.float32)) for p in polygons) > 0.01 * width * height


def test_train_and_test_share_neither_picks_nor_products(pick_set: PickSet) -> None:
    out, figures = pick_set
    split = read(out / "train-test-split.json")
    assert set(split) == {"trainset", "testset", "trainset-objects", "testset-objects"}
    assert not set(split["trainset"]) & set(split["testset"])
    assert not set(split["trainset-objects"]) & set(split["testset-objects"])
    assert len(split["trainset"]) + len(split["testset"]) == figures["picks"]
    for part in ("trainset", "testset"):
        for pick in split[part]:
            assert set(read(out / "Picks" / pick / "container.json")) <= set(split[f"{part}-objects"])


def test_every_product_of_a_manifest_has_references(pick_set: PickSet) -> None:
    out, _ = pick_set
    split = read(out / "train-test-split.json")
    for product_id in split["trainset-objects"] + split["testset-objects"]:
        images = [cv2.imread(str(path)) for path in (out / "Reference_Images" / product_id).glob("*.jpg")]
        assert 1 <= len(images) <= 6
        for image in images:
            assert all(200 <= side <= 300 for side in image.shape[:2])
            border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            assert np.median(border) > 180


def test_project_reader_takes_every_pick(pick_set: PickSet) -> None:
    out, figures = pick_set
    index = read_identification(out)
    assert len(index.picks) == figures["picks"]
    assert not index.skipped


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers(tmp_path: Path) -> None:
    found = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        write_picks(PickSettings(out, 8, seed=3, products=64), workers)
        found.append({str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert found[0] == found[1]


def test_interrupted_set_is_completed(tmp_path: Path) -> None:
    settings = PickSettings(tmp_path, 3, seed=3, products=20, test_fraction=0)
    write_picks(settings, workers=1)
    before = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    pick = sorted((tmp_path / "Picks").iterdir())[1]
    (pick / "annotation.json").unlink()
    (tmp_path / "train-test-split.json").unlink()
    write_picks(settings, workers=1)
    after = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_containers_add_up_to_the_picks_and_the_test_share(fraction: float) -> None:
    plans = list(plan_containers(PickSettings(Path("unused"), 500, seed=1, test_fraction=fraction)))
    assert sum(plan.picks for plan in plans) == 500
    assert [plan.first for plan in plans] == list(np.cumsum([0] + [plan.picks for plan in plans])[:-1])
    assert sum(plan.picks for plan in plans if plan.test) == pytest.approx(500 * fraction, abs=5)


def test_line_mates_are_in_the_same_pool() -> None:
    train, test = product_pools(3, 203, 0.3)
    assert len(train) + len(test) == 203
    assert not set(train // 4) & set(test // 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "--count 0"),
        ({"count": 1_000_001}, "1 to 1,000,000"),
        ({"seed": -1}, "--seed -1"),
        ({"products": -1}, "--products -1"),
        ({"products": 40}, "raise --products"),
        ({"test_fraction": 1.5}, "must be 0 to 1"),
        ({"test_fraction": float("nan")}, "must be 0 to 1"),
        ({"catalog": Path("nowhere")}, "not a folder"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    settings = PickSettings(**{"out": tmp_path / "new", "count": 1, "seed": 1, **change})
    with pytest.raises(DatasetError, match=message):
        write_picks(settings, workers=1)
    assert not (tmp_path / "new").exists()


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not empty"):
        write_picks(PickSettings(tmp_path, 1, seed=1), workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
