import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mca_perception.datasets.coco import CocoSplit
from mca_perception.datasets.synth.tote_set import (
    ToteSettings,
    assign_splits,
    parse_split,
    share_by_labels,
    write_totes,
)
from mca_perception.errors import DatasetError

ToteSet = tuple[Path, dict[str, Any]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        write_totes(ToteSettings(tmp_path / str(workers), 10, seed=3, products=20), workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_pycocotools_reads_it_and_the_polygons_agree_with_the_masks(tote_set: ToteSet) -> None:
    folder, figures = tote_set
    seen = 0
    for split in ("train", "val", "test"):
        coco = COCO(str(folder / f"{split}.json"))
        assert {entry["name"] for entry in coco.loadCats(coco.getCatIds())} == {"Object", "Tote"}
        for image in coco.loadImgs(coco.getImgIds()):
            ids = cv2.imread(
                str(folder / "masks" / f"{Path(image['file_name']).stem}.png"), cv2.IMREAD_UNCHANGED
            )
            assert ids.dtype == np.uint16
            assert ids.shape == (image["height"], image["width"])
            assert cv2.imread(str(folder / "images" / image["file_name"])).shape == (*ids.shape, 3)
            found = coco.loadAnns(coco.getAnnIds(image["id"]))
            objects = [entry for entry in found if entry["category_id"] == 1]
            assert len(found) == len(objects) + 1
            assert sorted(entry["instance_id"] for entry in objects) == sorted(set(np.unique(ids)) - {0})
            for entry in objects:
                mask, polygons = ids == entry["instance_id"], coco.annToMask(entry) > 0
                assert (mask & polygons).sum() / (mask | polygons).sum() > 0.98
                assert entry["area"] == mask.sum()
                assert entry["bbox"] == list(cv2.boundingRect(mask.astype(np.uint8)))
                assert entry["iscrowd"] == 0
                seen += 1
    assert seen == figures["labels"]


def test_project_reader_takes_every_annotation(tote_set: ToteSet) -> None:
    folder, figures = tote_set
    objects = 0
    for name in ("train", "val", "test"):
        split = CocoSplit.open(folder.parent, subset=folder.name, split=name)
        assert not split.skipped
        labelled = [a for record in split.records for a in record.annotations if a.category == "Object"]
        assert all(entry.product_id and entry.instance_id for entry in labelled)
        objects += len(labelled)
    assert objects == figures["labels"]


def test_annotation_and_image_ids_are_unique_over_splits(tote_set: ToteSet) -> None:
    folder, figures = tote_set
    files = [json.loads((folder / f"{split}.json").read_text()) for split in ("train", "val", "test")]
    for key, count in (("images", figures["scenes"]), ("annotations", figures["scenes"] + figures["labels"])):
        ids = [entry["id"] for file in files for entry in file[key]]
        assert len(set(ids)) == len(ids) == count


def test_scenes_are_full_and_cluttered(tote_set: ToteSet) -> None:
    _, figures = tote_set
    assert figures["labels_per_scene"] >= 7
    assert figures["mean_occluded"] > 0.12
    assert figures["occluded_share"] > 0.3
    assert 0.2 < figures["small_share"] < 0.5
    assert 0.08 < figures["largest_share"] < 0.3


def test_manifests_name_every_visible_product_and_some_hidden_ones(tote_set: ToteSet) -> None:
    folder, _ = tote_set
    hidden = 0
    for split in ("train", "val", "test"):
        coco = json.loads((folder / f"{split}.json").read_text())
        for image in coco["images"]:
            name = Path(image["file_name"]).stem
            manifest = json.loads((folder / "manifests" / f"{name}.json").read_text())
            visible = {
                a["product_id"]
                for a in coco["annotations"]
                if a["image_id"] == image["id"] and "product_id" in a
            }
            assert visible <= set(manifest["products"])
            assert manifest["container_id"]
            hidden += len(set(manifest["products"]) - visible)
            references = folder.parent / "Reference_Images"
            for product_id in manifest["products"]:
                numbers = sorted(int(path.stem) for path in (references / product_id).glob("*.jpg"))
                assert numbers == list(range(1, len(numbers) + 1))
                assert 1 <= len(numbers) <= 6
    assert hidden > 0


def test_interrupted_set_is_completed_without_redoing_scenes(tmp_path: Path) -> None:
    settings = ToteSettings(tmp_path, 4, seed=8, products=12)
    write_totes(settings, workers=1)
    folder = tmp_path / settings.subset
    before = contents(tmp_path)
    kept, lost = sorted((folder / ".parts").iterdir())[:2]
    lost.unlink()
    (folder / "train.json").unlink()
    (folder / "images" / f"{lost.stem}.jpg").unlink()
    untouched = (folder / "images" / f"{kept.stem}.jpg").stat().st_mtime_ns
    write_totes(settings, workers=1)
    assert contents(tmp_path) == before
    assert (folder / "images" / f"{kept.stem}.jpg").stat().st_mtime_ns == untouched


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    write_totes(ToteSettings(tmp_path, 1, seed=8, products=12), workers=1)
    with pytest.raises(DatasetError, match=r"other settings \(seed"):
        write_totes(ToteSettings(tmp_path, 1, seed=9, products=12, catalogue_seed=8), workers=1)


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mix-object-tote"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not empty"):
        write_totes(ToteSettings(tmp_path, 1, seed=8), workers=1)
    assert contents(tmp_path) == {"mix-object-tote/notes.txt": b"mine"}


def test_single_split_writes_one_file(tmp_path: Path) -> None:
    write_totes(ToteSettings(tmp_path, 2, seed=1, products=12, split="test"), workers=1)
    assert [path.name for path in (tmp_path / "mix-object-tote").glob("*.json")].count("test.json") == 1
    assert not (tmp_path / "mix-object-tote" / "train.json").exists()


def test_catalogue_seed_shares_products_between_sets(tmp_path: Path) -> None:
    ids = []
    for seed in (1, 2):
        write_totes(ToteSettings(tmp_path / str(seed), 2, seed, products=6, catalogue_seed=5), workers=1)
        ids.append({path.name for path in (tmp_path / str(seed) / "Reference_Images").iterdir()})
    assert ids[0] & ids[1]


def test_quotas_of_the_splits_are_exact() -> None:
    names = assign_splits(parse_split("train=0.7,val=0.15,test=0.15"), 200, seed=3)
    assert [names.count(split) for split in ("train", "val", "test")] == [140, 30, 30]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "--count 0"),
        ({"count": 1_000_001}, "1 to 1,000,000"),
        ({"seed": -1}, "--seed -1"),
        ({"catalogue_seed": -1}, "--catalogue-seed -1"),
        ({"subset": "mixed"}, "mix-object-tote"),
        ({"products": 0}, "--products 0"),
        ({"products": 2_000_000}, "--products 2000000"),
        ({"objects": "0-5"}, "--objects '0-5'"),
        ({"objects": "many"}, "--objects 'many'"),
        ({"split": "train=0.5"}, "sum to 0.5"),
        ({"split": "train=0.5,train=0.5"}, "not usable"),
        ({"split": "holdout"}, "not usable"),
        ({"split": "train=nan,val=1"}, "not usable"),
        ({"catalog": Path("nowhere")}, "not a folder"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    settings = ToteSettings(**{"out": tmp_path / "new", "count": 1, "seed": 1, **change})
    with pytest.raises(DatasetError, match=message):
        write_totes(settings, workers=1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("workers", [0, 1000])
def test_number_of_workers_is_bounded(tmp_path: Path, workers: int) -> None:
    with pytest.raises(DatasetError, match="--workers"):
        write_totes(ToteSettings(tmp_path / "new", 1, seed=1), workers)


def test_fullest_totes_have_unique_annotation_ids(tmp_path: Path) -> None:
    figures = write_totes(ToteSettings(tmp_path, 2, 1, products=12, split="test", objects="60"), workers=1)
    folder = tmp_path / "mix-object-tote"
    ids = [entry["id"] for entry in json.loads((folder / "test.json").read_text())["annotations"]]
    assert len(set(ids)) == len(ids) == figures["labels"] + 2
    assert figures["labels_per_scene"] > 30
    assert figures["scene_share_by_labels"]["26+"] == 1
    with pytest.raises(DatasetError, match=r"other settings \(objects"):
        write_totes(ToteSettings(tmp_path, 2, 1, products=12, split="test"), workers=1)


def test_scenes_are_counted_by_their_number_of_labels() -> None:
    assert share_by_labels(np.array([0, 4, 5, 9, 10, 14, 15, 25, 26, 60])) == dict.fromkeys(
        ("0-4", "5-9", "10-14", "15-25", "26+"), 0.2
    )


@pytest.mark.parametrize("change", [{"depth": True}, {"objects": "3"}])
def test_other_options_in_the_same_folder_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write_totes(ToteSettings(tmp_path, 1, seed=8, products=4), workers=1)
    with pytest.raises(DatasetError, match=rf"other settings \({next(iter(change))}\)"):
        write_totes(ToteSettings(tmp_path, 1, seed=8, products=4, **change), workers=1)
