from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mca_perception.datasets.coco import Annotation, ImageRecord
from mca_perception.geometry import Letterbox
from mca_perception.segmentation.evaluation import (
    describe_difficulty,
    evaluate_detections,
    operating_point,
    overlapping_detections,
    published_detections,
)
from mca_perception.segmentation.postprocess import Candidates

HEIGHT, WIDTH = 120, 160
CATEGORIES = [{"id": 3, "name": "Object"}, {"id": 1, "name": "Tote"}]


def ellipse(rng: np.random.Generator, box=None) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    y, x, height, width = box if box is not None else rng.uniform([10, 10, 4, 4], [110, 150, 30, 30])
    return ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 <= 1


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def box(mask: np.ndarray) -> list[float]:
    rows, columns = np.nonzero(mask)
    x, y = float(columns.min()), float(rows.min())
    return [x, y, float(columns.max()) + 1 - x, float(rows.max()) + 1 - y]


def random_set(seed: int, images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ellipses; detections are shaken copies of most of them, and some that belong to nothing."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in range(1, images + 1):
        for _ in range(int(rng.integers(0, 13))):
            where = rng.uniform([10, 10, 4, 4], [110, 150, 30, 30])
            category = int(rng.choice([3, 3, 3, 1]))
            mask = ellipse(rng, where)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "segmentation": rle(mask),
                    "bbox": box(mask),
                    "area": float(mask.sum()),
                    "iscrowd": int(rng.random() < 0.05),
                }
            )
            if rng.random() < 0.8:
                shaken = ellipse(rng, where + rng.normal(0, 2, 4))
                if shaken.any():
                    detections.append((image, category, shaken))
        detections += [(image, 3, ellipse(rng)) for _ in range(int(rng.integers(0, 4)))]
    results = [
        {
            "image_id": i,
            "category_id": c,
            "segmentation": rle(m),
            "bbox": box(m),
            "score": float(rng.random()),
        }
        for i, c, m in detections
    ]
    pictures = [
        {"id": i, "height": HEIGHT, "width": WIDTH, "file_name": str(i)} for i in range(1, images + 1)
    ]
    return {"info": {}, "images": pictures, "annotations": annotations, "categories": CATEGORIES}, results


def by_hand(truth, results, kind: str, categories: list[int], images: list[int] | None = None) -> list[float]:
    """mAP, mAP50, mAP75 as pycocotools' own summary gives them."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(copy.deepcopy(results)), kind)
        evaluation.params.catIds = categories
        if images is not None:
            evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(v) for v in evaluation.stats[:3]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("names", "ids"), [(["Object"], [3]), (["Object", "Tote"], [3, 1])])
def test_average_precision_is_that_of_pycocotools(seed, names, ids) -> None:
    truth, results = random_set(seed)
    figures = evaluate_detections(truth, results, names)
    for prefix, kind in (("mask", "segm"), ("box", "bbox")):
        found = [figures[f"{prefix}_{name}"] for name in ("map", "map50", "map75")]
        assert found == pytest.approx(by_hand(truth, results, kind, ids), abs=1e-12)
    assert 0 < figures["mask_map50"] < 1


def test_category_that_is_never_found_counts_as_zero() -> None:
    truth, results = random_set(0)
    objects = [r for r in results if r["category_id"] == 3]
    both = evaluate_detections(truth, objects, ["Object", "Tote"])["mask_map50"]
    assert both == pytest.approx(evaluate_detections(truth, objects, ["Object"])["mask_map50"] / 2)


def test_figures_by_count_are_those_of_the_images_alone() -> None:
    truth, results = random_set(1, images=20)
    counts = {i["id"]: 0 for i in truth["images"]}
    for annotation in truth["annotations"]:
        counts[annotation["image_id"]] += annotation["category_id"] == 3 and not annotation["iscrowd"]
    figures = evaluate_detections(truth, results, ["Object"])["by_count"]
    assert sum(f["images"] for f in figures) == sum(c > 0 for c in counts.values())
    for low, high, entry in ((1, 4, figures[0]), (5, 9, figures[1])):
        images = [i for i, count in counts.items() if low <= count <= high]
        assert entry["objects"] == f"{low}-{high}"
        assert entry["images"] == len(images)
        assert entry["mask_map50"] == pytest.approx(by_hand(truth, results, "segm", [3], images)[1])


def test_sizes_are_relative_to_the_image() -> None:
    truth, results = random_set(2)
    figures = evaluate_detections(truth, results, ["Object"])["by_size"]
    objects = [a for a in truth["annotations"] if a["category_id"] == 3 and not a["iscrowd"]]
    limits = (HEIGHT * WIDTH / 64, HEIGHT * WIDTH / 16)
    expected = [
        sum(a["area"] < limits[0] for a in objects),
        sum(limits[0] <= a["area"] < limits[1] for a in objects),
        sum(a["area"] >= limits[1] for a in objects),
    ]
    assert [figures[s]["annotations"] for s in ("small", "medium", "large")] == expected


def test_nothing_found_and_nothing_to_find() -> None:
    truth, results = random_set(0)
    assert evaluate_detections(truth, [], ["Object"])["mask_map50"] == 0
    empty = {**truth, "annotations": []}
    assert evaluate_detections(empty, results, ["Object"])["mask_map50"] is None
    point, scores = operating_point(empty, [], ["Object"])
    assert point["precision"] is point["recall"] is point["f1"] is point["best_f1"] is None
    assert {s.f1 for s in scores} == {1.0}


def counted_by_pycocotools(truth, results) -> tuple[int, int, int]:
    """True and false positives and misses at IoU 0.5 from pycocotools' own matching."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(copy.deepcopy(results)), "segm")
        evaluation.params.catIds = [3]
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
def test_operating_point_matches_like_pycocotools(seed) -> None:
    truth, results = random_set(seed)
    results = [r for r in results if r["score"] > 0.4]
    point, scores = operating_point(truth, results, ["Object"])
    hits, false, missed = counted_by_pycocotools(truth, results)
    assert sum(s.true_positives for s in scores) == hits
    assert sum(s.false_positives for s in scores) == false
    assert sum(s.false_negatives for s in scores) == missed
    assert point["precision"] == pytest.approx(hits / (hits + false))
    assert point["recall"] == pytest.approx(hits / (hits + missed))
    assert 0.5 <= point["mean_iou"] <= 1


def test_best_threshold_is_the_one_that_gives_the_best_f1() -> None:
    truth, results = random_set(5)
    point, _ = operating_point(truth, results, ["Object"])
    f1 = {
        r["score"]: operating_point(truth, [d for d in results if d["score"] >= r["score"]], ["Object"])[0][
            "f1"
        ]
        for r in results
        if r["category_id"] == 3
    }
    assert point["best_f1"] == pytest.approx(max(f1.values()))
    assert f1[point["best_f1_threshold"]] == pytest.approx(max(f1.values()))


@pytest.mark.parametrize("image_size", [(75, 101), (240, 320)])
def test_detections_carry_their_masks_and_boxes(image_size) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :20]
    logits = np.stack(
        [r - np.hypot(rows - y, columns - x) for y, x, r in rng.uniform([0, 0, 1], [16, 20, 6], (6, 3))]
    )
    candidates = Candidates(
        np.linspace(0.9, 0.4, 6).astype(np.float32),
        np.array([0, 1, 0, 0, 0, 0]),
        logits.astype(np.float32),
        Letterbox.fit(image_size, (64, 80)),
    )
    names, ids = ("Object", "Tote"), {"Object": 3, "Tote": 1}
    whole = overlapping_detections(candidates, 7, names, ids)
    shared = published_detections(candidates, 0.55, 7, names, ids)
    assert [d["category_id"] for d in whole] == [3, 1, 3, 3, 3, 3]
    assert all(d["score"] >= 0.55 for d in shared)
    total = np.zeros(image_size, int)
    for detection in shared:
        total += coco_mask.decode(detection["segmentation"])
    assert total.max() == 1
    for detection in whole:
        mask = coco_mask.decode(detection["segmentation"])
        assert mask.shape == image_size
        assert detection["bbox"] == box(mask)
    union = np.maximum.reduce([coco_mask.decode(d["segmentation"]) for d in whole[: len(shared)]])
    assert (total <= union).all()


def test_difficulty_of_a_known_set() -> None:
    def record(number: int, boxes: list[tuple[float, float, float, float]]) -> ImageRecord:
        annotations = tuple(
            Annotation(i, "Object", [], b, (b[2] - b[0]) * (b[3] - b[1])) for i, b in enumerate(boxes)
        )
        tote = Annotation(99, "Tote", [], (0, 0, 100, 100), 10_000)
        return ImageRecord(number, Path("x"), 100, 100, (*annotations, tote))

    records = [record(1, [(0, 0, 10, 10), (5, 0, 15, 10), (50, 50, 90, 90)]), record(2, [(0, 0, 50, 50)])]
    figures = describe_difficulty(records, ["Object"])
    assert figures["objects_per_image_mean"] == 2
    assert figures["objects_per_image_max"] == 3
    assert figures["small_objects_share"] == 0.5
    assert figures["objects_with_overlapping_box_share"] == 0.5
    assert figures["largest_box_iou_mean"] == pytest.approx((1 / 3 + 1 / 3) / 4)
