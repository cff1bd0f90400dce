from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mca_perception.datasets.armbench import read_identification
from mca_perception.datasets.coco import CocoSplit
from mca_perception.errors import DatasetError
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.evaluation import evaluate_identification, evaluate_segmentation
from tests.support.bundles import write_colour_bundle
from tests.support.datasets import write_pick_set, write_tote_set
from tests.support.detections import by_hand


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> PerceptionPipeline:
    bundle = write_colour_bundle(tmp_path_factory.mktemp("models") / "colours")
    return PerceptionPipeline.from_bundle(bundle.path)


def test_perfect_segmentation_scores_one(pipeline, tmp_path) -> None:
    objects = write_tote_set(tmp_path)
    run = evaluate_segmentation(pipeline, CocoSplit.open(tmp_path))
    metrics = run.metrics
    alone = metrics["object_only"]
    assert alone["mask_map50"] == alone["mask_map75"] == alone["box_map50"] == pytest.approx(1)
    assert alone["mask_map"] > 0.9
    assert metrics["mask_map50"] == pytest.approx(0.5)  # the model does not know the class Tote
    assert metrics["by_category"]["Tote"]["mask_map50"] == 0
    assert (metrics["categories_of_model"], metrics["categories_in_data"]) == (["Object"], ["Object", "Tote"])
    assert metrics["operating_point"]["categories"] == ["Object"]
    assert metrics["operating_point"]["precision"] == metrics["operating_point"]["recall"] == 1
    assert metrics["images"] == 6
    assert metrics["annotations"] == len(objects) + 6
    assert len(run.detections) == len(run.published) == len(objects)
    assert {score.quality > 0.9 for score in run.scores} == {True}
    assert metrics["latency_ms"]["total"]["p50"] > 0
    assert [e["images"] for e in metrics["by_count"]] == [4, 2, 0, 0, 0]
    json.dumps(metrics, allow_nan=False)


def test_figures_are_those_of_pycocotools_by_hand(pipeline, tmp_path) -> None:
    write_tote_set(tmp_path, 9, hidden=4)
    run = evaluate_segmentation(pipeline, CocoSplit.open(tmp_path))
    truth = json.loads((tmp_path / "mix-object-tote" / "test.json").read_text())
    for kind, prefix in (("segm", "mask"), ("bbox", "box")):
        names = [f"{prefix}_{name}" for name in ("map", "map50", "map75")]
        assert [run.metrics[n] for n in names] == pytest.approx(by_hand(truth, run.detections, kind))
        alone = [run.metrics["object_only"][n] for n in names]
        assert alone == pytest.approx(by_hand(truth, run.detections, kind, [1]))
    assert run.metrics["object_only"]["mask_map50"] < 0.95
    assert run.metrics["operating_point"]["recall"] < 1
    assert sum(score.false_negatives for score in run.scores) == 4


def test_categories_with_other_ids_give_the_same_figures(pipeline, tmp_path) -> None:
    write_tote_set(tmp_path, hidden=2)
    path = tmp_path / "mix-object-tote" / "test.json"
    document = json.loads(path.read_text())
    before = evaluate_segmentation(pipeline, CocoSplit.open(tmp_path)).metrics["object_only"]
    document["categories"] = [{"id": 5, "name": "Tote"}, {"id": 9, "name": "Object"}]
    for annotation in document["annotations"]:
        annotation["category_id"] = {1: 9, 2: 5}[annotation["category_id"]]
    path.write_text(json.dumps(document))
    run = evaluate_segmentation(pipeline, CocoSplit.open(tmp_path))
    assert run.metrics["object_only"] == before
    assert {detection["category_id"] for detection in run.detections} == {9}


def test_classes_that_the_data_does_not_annotate_are_left_out(tmp_path) -> None:
    bundle = write_colour_bundle(tmp_path / "model", segmentation={"labels": ["Parcel", "Object"]})
    write_tote_set(tmp_path)
    run = evaluate_segmentation(
        PerceptionPipeline.from_bundle(bundle.path), CocoSplit.open(tmp_path)
    )  # everything it finds is a Parcel
    assert run.detections == run.published == []
    assert run.metrics["object_only"]["mask_map50"] == 0
    assert run.metrics["operating_point"]["precision"] is None


def test_unreadable_image_is_counted(pipeline, tmp_path) -> None:
    write_tote_set(tmp_path)
    path = tmp_path / "mix-object-tote" / "images" / "003.png"
    path.write_bytes(path.read_bytes()[:60])  # the size can still be read
    metrics = evaluate_segmentation(pipeline, CocoSplit.open(tmp_path)).metrics
    assert metrics["skipped"] == {"image not readable": 1}
    assert metrics["images"] == 5
    assert metrics["object_only"]["mask_map50"] == pytest.approx(1)


def test_data_without_a_common_category_is_refused(pipeline, tmp_path) -> None:
    write_tote_set(tmp_path)
    path = tmp_path / "mix-object-tote" / "test.json"
    path.write_text(path.read_text().replace('"Object"', '"Thing"'))
    with pytest.raises(DatasetError, match="the model finds"):
        evaluate_segmentation(pipeline, CocoSplit.open(tmp_path))


def test_picks_are_identified(pipeline, tmp_path) -> None:
    write_pick_set(tmp_path)
    metrics = evaluate_identification(pipeline, read_identification(tmp_path, split="testset")).metrics
    assert metrics["recall@1"] == metrics["recall@3"] == 1
    assert metrics["queries"] == 8
    assert metrics["chance_recall@1"] == pytest.approx(1 / 3)
    assert metrics["mean_candidates"] == 3
    assert metrics["skipped"] == {}
    assert metrics["recall@1_interval95"] == [1, 1]
    json.dumps(metrics)


@pytest.mark.parametrize("views", [1, 3])
def test_wrong_picks_lower_recall(pipeline, tmp_path, views) -> None:
    write_pick_set(tmp_path, wrong=2)
    index = read_identification(tmp_path)
    metrics = evaluate_identification(pipeline, index, views=views, all_references=True).metrics
    assert metrics["recall@1"] == 0.75
    assert metrics["recall@3"] == 1
    assert metrics["all_references"]["recall@1"] == 0.75
    assert metrics["all_references"]["mean_candidates"] == 6
    assert metrics["reference_images"] == 12


def test_skips_have_reasons_and_broken_references_are_counted(pipeline, tmp_path) -> None:
    write_pick_set(tmp_path)
    (tmp_path / "Picks" / "0000" / "PickRGB.jpg").unlink()
    (tmp_path / "Picks" / "0001" / "PickRGB.jpg").write_bytes(b"damaged")
    (tmp_path / "Picks" / "0002" / "annotation.json").unlink()
    (tmp_path / "Reference_Images" / "red" / "1.png").write_bytes(b"damaged")
    index = read_identification(tmp_path, split="testset")
    metrics = evaluate_identification(pipeline, index, all_references=True).metrics
    assert metrics["queries"] == 5
    assert metrics["skipped"] == {
        "annotation.json missing or not readable": 1,
        "pick without PickRGB": 1,
        "pick whose image is not readable": 1,
    }
    assert metrics["incomplete"]["image not readable"] == 1
    assert metrics["reference_images"] == 11
    assert metrics["recall@1"] == 1


def test_manifest_without_references_counts_as_wrong(pipeline, tmp_path) -> None:
    write_pick_set(tmp_path)
    for path in (tmp_path / "Reference_Images").rglob("*.png"):
        if path.parent.name != "red":
            path.unlink()
    metrics = evaluate_identification(pipeline, read_identification(tmp_path)).metrics
    truths = [json.loads(p.read_text())["GT_ID"] for p in (tmp_path / "Picks").rglob("annotation.json")]
    assert metrics["recall@1"] == pytest.approx(np.mean([t == "red" for t in truths]))
    assert sum(metrics["not_ranked"].values()) == sum(t != "red" for t in truths)


def test_no_usable_query_is_refused(pipeline, tmp_path: Path) -> None:
    write_pick_set(tmp_path)
    for path in (tmp_path / "Picks").rglob("PickRGB.jpg"):
        path.unlink()
    index = read_identification(tmp_path)
    with pytest.raises(DatasetError, match=r"no pick has a readable PickRGB\.jpg"):
        evaluate_identification(pipeline, index)
    assert evaluate_identification(pipeline, index, views=2).metrics["queries"] == 8
    with pytest.raises(DatasetError, match="views is 5"):
        evaluate_identification(pipeline, index, views=5)
