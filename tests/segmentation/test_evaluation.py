from __future__ import annotations

import json

import numpy as np
import pytest

from mca_perception.segmentation.evaluation import evaluate_detections
from tests.support.detections import (
    CATEGORIES,
    HEIGHT,
    OBJECT,
    TOTE,
    WIDTH,
    annotation,
    as_results,
    by_hand,
    document,
    ellipse,
    random_set,
)

SAMPLES = 20


def metrics_of(truth, results, **options) -> dict:
    metrics = evaluate_detections(truth, results, samples=SAMPLES, **options).metrics
    json.dumps(metrics, allow_nan=False)
    return metrics


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_pycocotools(seed) -> None:
    truth, results = random_set(seed)
    metrics = metrics_of(truth, results)
    for prefix, kind in (("mask", "segm"), ("box", "bbox")):
        names = [f"{prefix}_{name}" for name in ("map", "map50", "map75")]
        assert [metrics[n] for n in names] == pytest.approx(by_hand(truth, results, kind), abs=1e-12)
        alone = [metrics["object_only"][n] for n in names]
        assert alone == pytest.approx(by_hand(truth, results, kind, [OBJECT]), abs=1e-12)
    assert 0 < metrics["mask_map50"] < 1
    low, high = metrics["object_only"]["mask_map50_interval95"]
    assert low < metrics["object_only"]["mask_map50"] < high
    assert metrics["bootstrap"] == {"resamples": SAMPLES, "seed": 0, "unit": "image"}


def test_category_that_is_never_found_counts_as_zero() -> None:
    truth, results = random_set(0)
    metrics = metrics_of(truth, [r for r in results if r["category_id"] == OBJECT])
    assert metrics["by_category"]["Tote"]["mask_map50"] == 0
    assert metrics["mask_map50"] == pytest.approx(metrics["object_only"]["mask_map50"] / 2)


def test_perfect_detections_score_one() -> None:
    truth, _ = random_set(3)
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    metrics = metrics_of(truth, as_results(truth["annotations"]))
    assert metrics["mask_map"] == metrics["box_map"] == metrics["object_only"]["mask_map"] == pytest.approx(1)
    assert metrics["mask_map50_interval95"] == pytest.approx([1, 1])
    assert all(part["mask_map50"] == pytest.approx(1) for part in metrics["by_count"] if part["annotations"])


def test_nothing_found_scores_zero() -> None:
    truth, _ = random_set(0)
    metrics = metrics_of(truth, [])
    assert metrics["mask_map50"] == metrics["box_map50"] == metrics["object_only"]["mask_map"] == 0


def test_nothing_to_find_has_no_score() -> None:
    truth, results = random_set(0)
    metrics = metrics_of({**truth, "annotations": []}, results)
    assert metrics["mask_map50"] is metrics["mask_map50_interval95"] is None
    assert metrics["object_only"]["box_map"] is None
    assert metrics["by_count"][0]["images"] == 12
    assert metrics["by_size"]["small"]["annotations"] == 0


def test_images_without_annotations_make_false_positives() -> None:
    rng = np.random.default_rng(0)
    found, invented = annotation(1, 1, OBJECT, ellipse(rng)), annotation(2, 2, OBJECT, ellipse(rng))
    results = [*as_results([found], 0.5), *as_results([invented], 0.9)]
    metrics = metrics_of(document([found], 2), results)
    assert metrics["mask_map50"] == pytest.approx(by_hand(document([found], 2), results, "segm")[1])
    assert metrics["mask_map50"] == pytest.approx(0.5)


def test_detection_on_a_crowd_counts_neither_way() -> None:
    rng = np.random.default_rng(0)
    single = annotation(1, 1, OBJECT, ellipse(rng, np.array([30, 40, 10, 10])))
    crowd = annotation(2, 1, OBJECT, ellipse(rng, np.array([80, 110, 30, 40])), crowd=True)
    inside = annotation(3, 1, OBJECT, ellipse(rng, np.array([80, 110, 8, 9])))
    results = [*as_results([single], 0.5), *as_results([inside], 0.9)]
    metrics = metrics_of(document([single, crowd], 1), results)
    assert metrics["mask_map50"] == pytest.approx(1)
    assert metrics["by_count"][0]["annotations"] == 1


def test_order_and_numbers_of_categories_do_not_matter() -> None:
    truth, results = random_set(1)
    other = {OBJECT: 7, TOTE: 90}

    def renumbered(entries, key="category_id"):
        return [{**entry, key: other[entry[key]]} for entry in entries]

    changed = {
        **truth,
        "annotations": renumbered(truth["annotations"]),
        "categories": renumbered(reversed(CATEGORIES), "id"),
    }
    assert metrics_of(changed, renumbered(results)) == {
        **(expected := metrics_of(truth, results)),
        "by_category": {name: expected["by_category"][name] for name in ("Tote", "Object")},
    }


def test_data_without_the_class_object_has_all_classes_only() -> None:
    truth, results = random_set(1)
    truth["categories"] = [{"id": OBJECT, "name": "Parcel"}, {"id": TOTE, "name": "Cage"}]
    metrics = metrics_of(truth, results)
    assert metrics["object_only"] is None
    assert {part["object_only"] for part in metrics["by_count"]} == {None}
    assert sum(part["annotations"] for part in metrics["by_count"]) == sum(
        not a["iscrowd"] for a in truth["annotations"]
    )


def test_figures_by_count_are_those_of_the_images_alone() -> None:
    rng = np.random.default_rng(0)
    wanted = [0, 2, 4, 5, 9, 10, 14, 15, 25, 26, 30]
    annotations, results = [], []
    for image, count in enumerate(wanted, 1):
        for _ in range(count):
            where = rng.uniform([10, 10, 4, 4], [110, 150, 30, 30])
            annotations.append(annotation(len(annotations) + 1, image, OBJECT, ellipse(rng, where)))
            shaken = annotation(0, image, OBJECT, ellipse(rng, where + rng.normal(0, 2, 4).clip(-3, 3)))
            results += as_results([shaken], float(rng.random()))
    annotations.append(annotation(len(annotations) + 1, 2, TOTE, ellipse(rng)))
    truth = document(annotations, len(wanted))
    bins = metrics_of(truth, results)["by_count"]
    assert [part["objects"] for part in bins] == ["0-4", "5-9", "10-14", "15-25", "26+"]
    assert [part["images"] for part in bins] == [3, 2, 2, 2, 2]
    assert [part["object_only"]["annotations"] for part in bins] == [6, 14, 24, 40, 56]
    assert bins[0]["annotations"] == 7
    for part, images in zip(bins, ([1, 2, 3], [4, 5], [6, 7], [8, 9], [10, 11]), strict=True):
        expected = by_hand(truth, results, "segm", [OBJECT], images)
        found = [part["object_only"][name] for name in ("mask_map", "mask_map50", "mask_map75")]
        assert found == pytest.approx(expected, abs=1e-12)


def test_sizes_are_relative_to_the_image() -> None:
    truth, results = random_set(2)
    figures = metrics_of(truth, results)["by_size"]
    areas = [a["area"] for a in truth["annotations"] if a["category_id"] == OBJECT and not a["iscrowd"]]
    small, large = HEIGHT * WIDTH / 64, HEIGHT * WIDTH / 16
    expected = [
        sum(area < small for area in areas),
        sum(small <= area < large for area in areas),
        sum(area >= large for area in areas),
    ]
    found = [figures[size]["object_only"]["annotations"] for size in ("small", "medium", "large")]
    assert found == expected
    assert 0 < figures["large"]["mask_map50"] <= 1


def test_precision_recall_averages_to_ap50() -> None:
    truth, results = random_set(2)
    evaluated = evaluate_detections(truth, results, samples=0)
    assert set(evaluated.precision_recall) == {"Object", "Tote"}
    for name, precision in evaluated.precision_recall.items():
        assert precision.shape == (101,)
        assert (np.diff(precision) <= 0).all()
        assert precision.mean() == pytest.approx(evaluated.metrics["by_category"][name]["mask_map50"])
