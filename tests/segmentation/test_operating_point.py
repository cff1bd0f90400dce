from __future__ import annotations

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mca_perception.segmentation.average_precision import Evaluations
from mca_perception.segmentation.operating_point import ImageScore, best_threshold, operating_point
from tests.support.detections import OBJECT, TOTE, annotation, as_results, document, ellipse, random_set


def counted_by_pycocotools(truth, results) -> tuple[int, int, int]:
    """True and false positives and misses at IoU 0.5 from pycocotools' own matching."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(copy.deepcopy(results)), "segm")
        evaluation.params.catIds = [OBJECT]
        evaluation.evaluate()
    hits = false = wanted = 0
    for entry in (e for e in evaluation.evalImgs[: len(truth["images"])] if e is not None):
        counted = ~entry["dtIgnore"][0].astype(bool)
        matched = entry["dtMatches"][0] > 0
        hits += int((matched & counted).sum())
        false += int((~matched & counted).sum())
        wanted += int((~np.asarray(entry["gtIgnore"], bool)).sum())
    return hits, false, wanted - hits


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_pycocotools(seed) -> None:
    truth, results = random_set(seed)
    results = [r for r in results if r["score"] > 0.4]
    point, scores = operating_point(truth, results, [OBJECT])
    hits, false, missed = counted_by_pycocotools(truth, results)
    assert sum(s.true_positives for s in scores) == hits
    assert sum(s.false_positives for s in scores) == false
    assert sum(s.false_negatives for s in scores) == missed
    assert point["precision"] == pytest.approx(hits / (hits + false))
    assert point["recall"] == pytest.approx(hits / (hits + missed))
    assert 0.5 <= point["mean_iou"] <= 1


def test_overlap_is_that_of_the_matched_pairs() -> None:
    rng = np.random.default_rng(0)
    places = [np.array([30, 40, 12, 14]), np.array([80, 110, 20, 22]), np.array([90, 30, 15, 9])]
    shifts = [np.array([2, -1, 1, 0]), np.array([-3, 2, 0, 1]), np.array([0, 1, -1, 1])]
    masks = [(ellipse(rng, p), ellipse(rng, p + s)) for p, s in zip(places, shifts, strict=True)]
    annotations = [annotation(i, 1, OBJECT, m) for i, (m, _) in enumerate(masks, 1)]
    results = []
    for i, score in ((2, 0.3), (0, 0.9), (1, 0.6)):  # in another order than the annotations
        results += as_results([annotation(0, 1, OBJECT, masks[i][1])], score)
    expected = sum((a & b).sum() / (a | b).sum() for a, b in masks)
    point, (score,) = operating_point(document(annotations, 1), results, [OBJECT])
    assert (score.true_positives, score.false_positives, score.false_negatives) == (3, 0, 0)
    assert score.overlap == pytest.approx(expected)
    assert score.quality == pytest.approx(expected / 3)
    assert point["mean_iou"] == pytest.approx(expected / 3)


def test_classes_that_do_not_count_are_left_out() -> None:
    truth, results = random_set(1)
    both, _ = operating_point(truth, results, [OBJECT, TOTE])
    tote, scores = operating_point(truth, results, [TOTE])
    totes = [a for a in truth["annotations"] if a["category_id"] == TOTE and not a["iscrowd"]]
    assert sum(s.true_positives + s.false_negatives for s in scores) == len(totes)
    assert tote != both


def test_nothing_found_and_nothing_to_find() -> None:
    point, scores = operating_point(document([], 3), [], [OBJECT])
    assert set(point.values()) == {None}
    assert [(s.image_id, s.f1, s.quality) for s in scores] == [(1, 1, 1), (2, 1, 1), (3, 1, 1)]
    assert best_threshold(Evaluations.of(document([], 3), [], "segm"), [OBJECT])["best_f1_threshold"] is None


def test_quality_weighs_mistakes_and_outlines() -> None:
    assert ImageScore(1, 2, 1, 1, 1.6).quality == pytest.approx(1.6 / 3)
    assert ImageScore(1, 0, 2, 0, 0.0).quality == 0
    assert ImageScore(1, 2, 1, 1, 1.6).f1 == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", [5, 6])
def test_best_threshold_is_the_one_that_gives_the_best_f1(seed) -> None:
    truth, results = random_set(seed)
    best = best_threshold(Evaluations.of(truth, results, "segm"), [OBJECT])
    f1 = {
        r["score"]: operating_point(truth, [d for d in results if d["score"] >= r["score"]], [OBJECT])[0][
            "f1"
        ]
        for r in results
        if r["category_id"] == OBJECT
    }
    assert best["best_f1"] == pytest.approx(max(f1.values()))
    assert f1[best["best_f1_threshold"]] == pytest.approx(max(f1.values()))
