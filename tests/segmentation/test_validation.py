from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mca_perception.segmentation.validation import mask_average_precision, stride4_average_precision
from tests.support.detections import HEIGHT, OBJECT, TOTE, WIDTH, by_hand, random_set

LABELS = {OBJECT: 0, TOTE: 1}
NAMES = ("Object", "Tote")


def as_arrays(truth, results):
    """Masks, labels and scores per image, as a task hands them over."""

    def stacked(entries):
        masks = [coco_mask.decode(e["segmentation"]).astype(bool) for e in entries]
        labels = np.array([LABELS[e["category_id"]] for e in entries], np.int64)
        return np.array(masks, bool).reshape(-1, HEIGHT, WIDTH), labels

    for image in truth["images"]:
        found = [r for r in results if r["image_id"] == image["id"]]
        masks, labels = stacked(found)
        scores = np.array([r["score"] for r in found], np.float32)
        yield (
            (scores, labels, masks),
            stacked([a for a in truth["annotations"] if a["image_id"] == image["id"]]),
        )


@pytest.fixture
def scene_set():
    truth, results = random_set(3)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    return truth, [{**r, "score": float(np.float32(r["score"]))} for r in results]


def test_figures_are_those_of_pycocotools(scene_set) -> None:
    truth, results = scene_set
    figures = mask_average_precision(as_arrays(truth, results), NAMES)
    found = [figures[name] for name in ("mask_map", "mask_map50", "mask_map75")]
    assert found == pytest.approx(by_hand(truth, results, "segm"), abs=1e-12)
    for name, category in (("Object", OBJECT), ("Tote", TOTE)):
        alone = [
            [e for e in entries if e["category_id"] == category]
            for entries in (truth["annotations"], results)
        ]
        expected = by_hand({**truth, "annotations": alone[0]}, alone[1], "segm")[1]
        assert figures[f"mask_map50_{name}"] == pytest.approx(expected, abs=1e-12)


def test_threshold_is_that_of_the_objects(scene_set) -> None:
    """Totes neither raise nor lower it."""
    truth, results = scene_set
    objects = [r for r in results if r["category_id"] == OBJECT]
    thresholds = [
        mask_average_precision(as_arrays(truth, found), NAMES)["score_threshold"]
        for found in (results, objects)
    ]
    assert 0 < thresholds[0] == thresholds[1] < 1


def test_figures_come_after_duplicates_are_removed(scene_set) -> None:
    truth, _ = scene_set
    pairs = list(as_arrays(truth, []))[:3]
    predictions = []
    for _, (masks, labels) in pairs:
        logits = np.where(masks, 1.0, -1.0).astype(np.float32)
        twice = np.concatenate([logits, logits])
        scores = np.linspace(0.9, 0.1, len(twice), dtype=np.float32)
        predictions.append((scores, np.concatenate([labels, labels]), twice))
    truths = [(masks, labels) for _, (masks, labels) in pairs]
    assert stride4_average_precision(predictions, truths, NAMES)["mask_map50"] > 0.9


@pytest.mark.parametrize("missing", ["annotations", "results"])
def test_nothing_found_or_nothing_to_find_is_zero(scene_set, missing) -> None:
    truth, results = scene_set
    truth, results = ({**truth, "annotations": []}, results) if missing == "annotations" else (truth, [])
    figures = mask_average_precision(as_arrays(truth, results), NAMES)
    assert set(figures) >= {"mask_map", "mask_map50", "mask_map75"}
    assert set(figures.values()) == {0.0}
