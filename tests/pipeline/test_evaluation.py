from __future__ import annotations

import json

import pytest

from mca_perception.datasets.coco import CocoSplit
from mca_perception.errors import DatasetError
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.evaluation import evaluate_segmentation
from tests.support.bundles import write_colour_bundle
from tests.support.datasets import write_tote_set
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
