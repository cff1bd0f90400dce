"""Drawn truth and shaken detections, and pycocotools called on them by hand."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HEIGHT, WIDTH = 120, 160
OBJECT, TOTE = 3, 1
CATEGORIES = [{"id": OBJECT, "name": "Object"}, {"id": TOTE, "name": "Tote"}]


def ellipse(rng: np.random.Generator, where: np.ndarray | None = None) -> np.ndarray:
    """Draw an ellipse given as centre and radii (y, x, height, width), or a random one."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    y, x, height, width = where if where is not None else rng.uniform([10, 10, 4, 4], [110, 150, 30, 30])
    return ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 <= 1


def rle(mask: np.ndarray) -> dict[str, Any]:
    """Compressed RLE as JSON holds it."""
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def box(mask: np.ndarray) -> list[float]:
    """COCO box of a mask."""
    rows, columns = np.nonzero(mask)
    x, y = float(columns.min()), float(rows.min())
    return [x, y, float(columns.max()) + 1 - x, float(rows.max()) + 1 - y]


def annotation(
    number: int, image: int, category: int, mask: np.ndarray, crowd: bool = False
) -> dict[str, Any]:
    """Entry of an annotation file."""
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": rle(mask),
        "bbox": box(mask),
        "area": float(mask.sum()),
        "iscrowd": int(crowd),
    }


def as_results(annotations: list[dict[str, Any]], score: float = 0.9) -> list[dict[str, Any]]:
    """Detections that equal annotations."""
    names = ("image_id", "category_id", "segmentation", "bbox")
    return [{**{name: a[name] for name in names}, "score": score} for a in annotations]


def random_set(seed: int, images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ellipses, some of them crowds; detections are shaken copies of most, and some that belong to nothing."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def detect(image: int, category: int, mask: np.ndarray) -> None:
        if mask.any():
            results.extend(as_results([annotation(0, image, category, mask)], float(rng.random())))

    for image in range(1, images + 1):
        for _ in range(int(rng.integers(0, 13))):
            where = rng.uniform([10, 10, 4, 4], [110, 150, 30, 30])
            category = int(rng.choice([OBJECT, OBJECT, OBJECT, TOTE]))
            crowd = rng.random() < 0.05
            annotations.append(annotation(len(annotations) + 1, image, category, ellipse(rng, where), crowd))
            if rng.random() < 0.8:
                detect(image, category, ellipse(rng, where + rng.normal(0, 2, 4)))
        for _ in range(int(rng.integers(0, 4))):
            detect(image, OBJECT, ellipse(rng))
    return document(annotations, images), results


def document(annotations: list[dict[str, Any]], images: int) -> dict[str, Any]:
    """COCO document of images 1 to ``images``."""
    pictures = [
        {"id": number, "height": HEIGHT, "width": WIDTH, "file_name": str(number)}
        for number in range(1, images + 1)
    ]
    return {"info": {}, "images": pictures, "annotations": annotations, "categories": CATEGORIES}


def by_hand(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    kind: str,
    categories: list[int] | None = None,
    images: list[int] | None = None,
) -> list[float]:
    """mAP, mAP50, mAP75 as pycocotools' own summary gives them."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(copy.deepcopy(results)), kind)
        if categories is not None:
            evaluation.params.catIds = categories
        if images is not None:
            evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:3]]
