"""Identification evaluation on drawn picks, through the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mca_perception.datasets.armbench import read_identification
from mca_perception.errors import BundleError, DatasetError
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.identification_evaluation import evaluate_identification
from tests.support.bundles import write_colour_bundle, write_fusing_bundle
from tests.support.datasets import write_pick_set


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> PerceptionPipeline:
    bundle = write_colour_bundle(tmp_path_factory.mktemp("models") / "colours")
    return PerceptionPipeline.from_bundle(bundle.path)


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
    assert metrics["container"]["recall@1"] == 0.75
    assert metrics["container"]["recall@3"] == 1
    assert metrics["container"]["mean_candidates"] == 3
    assert (metrics["gallery"], metrics["recall@1"], metrics["mean_candidates"]) == ("all", 0.75, 6)
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


def test_denominator_is_stated(pipeline, tmp_path) -> None:
    write_pick_set(tmp_path)
    (tmp_path / "Picks" / "0000" / "PickRGB.jpg").unlink()
    (tmp_path / "Picks" / "0002" / "annotation.json").unlink()
    metrics = evaluate_identification(pipeline, read_identification(tmp_path, split="testset")).metrics
    assert metrics["picks"] == 8 == metrics["queries"] + sum(metrics["skipped"].values())
    assert metrics["views_used"] == {"1": 6}
    several = evaluate_identification(pipeline, read_identification(tmp_path), views=3).metrics
    assert several["views_used"] == {"2": 1, "3": 6}


def test_views_are_joined_by_the_network_of_the_bundle(tmp_path) -> None:
    write_pick_set(tmp_path / "picks", wrong=2)
    index = read_identification(tmp_path / "picks")
    fusing = PerceptionPipeline.from_bundle(write_fusing_bundle(tmp_path / "model").path)
    metrics = evaluate_identification(fusing, index, views=3).metrics
    assert metrics["view_fusion"] == "network"
    assert metrics["recall@1"] == metrics["most_similar_view"]["recall@1"] == 0.75
    assert evaluate_identification(fusing, index).metrics["view_fusion"] == "most similar view"
    four = evaluate_identification(fusing, index, views=4).metrics  # more than it has slots
    assert four["recall@1"] == 0.75


def test_fused_query_is_the_mean_of_the_views_present(tmp_path) -> None:
    fusing = PerceptionPipeline.from_bundle(write_fusing_bundle(tmp_path / "model").path)
    rows = np.eye(3, 4, dtype=np.float32)
    for slots in ((0, 1, 2), (0, 2), (1, 2)):
        fused = fusing.fuse_views({slot: rows[slot] for slot in slots})
        mean = rows[list(slots)].mean(axis=0)
        np.testing.assert_allclose(fused, (mean / np.linalg.norm(mean))[None], rtol=1e-6)
    assert fusing.fuse_views({0: rows[0]}).tolist() == rows[:1].tolist()
    assert fusing.fuse_views({0: rows[0], 3: rows[1]}).shape == (
        2,
        4,
    )  # no slot 3: the most similar view counts


def test_bundle_without_the_network_it_names_is_refused(tmp_path) -> None:
    bundle = write_colour_bundle(tmp_path / "model", identification={"views": 3})
    with pytest.raises(BundleError, match="no graph 'fusion'"):
        PerceptionPipeline.from_bundle(bundle.path)
