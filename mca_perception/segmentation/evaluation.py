"""Segmentation figures: average precision by pycocotools, an operating point, and how difficult a set is."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.coco import ImageRecord
from mca_perception.segmentation.postprocess import Candidates, resize_masks, to_objects

__all__ = [
    "COUNT_BINS",
    "ImageScore",
    "describe_difficulty",
    "evaluate_detections",
    "operating_point",
    "overlapping_detections",
    "published_detections",
]

Detection = dict[str, Any]
"""An entry of a COCO results file with ``bbox`` and an RLE ``segmentation``."""

MAX_DETECTIONS = 100
COUNT_BINS = ((1, 4), (5, 9), (10, 14), (15, 25), (26, None))
"""Objects per image, inclusive."""

# Relative areas in millionths of the image, because image sizes differ within one set.
_AREA_UNIT = 1e6
_SMALL, _LARGE = _AREA_UNIT / 64, _AREA_UNIT / 16
_SIZES = {"all": (0.0, 1e10), "small": (0.0, _SMALL), "medium": (_SMALL, _LARGE), "large": (_LARGE, 1e10)}


@dataclass(frozen=True)
class ImageScore:
    """Matches of one image at the operating point."""

    image_id: int
    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 for an empty image left empty."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else 1.0


def overlapping_detections(
    candidates: Candidates, image_id: int, label_names: Sequence[str], category_ids: Mapping[str, int]
) -> list[Detection]:
    """Give every candidate its whole mask, as COCO's average precision expects; masks may overlap."""
    height, width = candidates.letterbox.image_size
    detections = []
    windows = resize_masks(candidates.mask_logits, candidates.letterbox)
    for score, label, (y, x, logits) in zip(candidates.scores, candidates.labels, windows, strict=True):
        inside = logits > 0
        if not inside.any():
            continue
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        detections.append(
            {
                "image_id": image_id,
                "category_id": category_ids[label_names[int(label)]],
                "score": float(score),
                "bbox": [
                    x.start + int(columns[0]),
                    y.start + int(rows[0]),
                    int(columns[-1] - columns[0]) + 1,
                    int(rows[-1] - rows[0]) + 1,
                ],
                "segmentation": _window_rle(inside, y.start, x.start, height, width),
            }
        )
    return detections


def published_detections(
    candidates: Candidates,
    score_threshold: float,
    image_id: int,
    label_names: tuple[str, ...],
    category_ids: Mapping[str, int],
) -> list[Detection]:
    """Detections as the pipeline publishes them: above the threshold, every pixel given to one object."""
    objects = to_objects(candidates.above(score_threshold), label_names)
    return objects.to_coco(image_id, category_ids)


def evaluate_detections(
    truth: dict[str, Any], detections: list[Detection], categories: Sequence[str]
) -> dict[str, Any]:
    """Average precision over some categories.

    Args:
        truth: COCO document.
        detections: COCO results of all its images.
        categories: names of the categories to average over.

    Returns:
        ``mask_map50``, ``mask_map75``, ``mask_map``, ``box_map50``, ``box_map75``, ``box_map``, ``by_size``
        (relative to the image: small below 1/64 of its area, large above 1/16) and ``by_count``. ``None``
        where there is nothing to find.
    """
    chosen = [c["id"] for c in truth["categories"] if c["name"] in categories]
    ground, found = _indexed(truth, truth["annotations"]), _indexed(truth, detections)
    masks = _accumulate(ground, found, "segm", chosen)
    boxes = _accumulate(ground, found, "bbox", chosen)
    figures: dict[str, Any] = {**_precisions(masks, "mask"), **_precisions(boxes, "box")}
    figures["by_size"] = {
        size: _size_figures(masks, ground, chosen, size) for size in ("small", "medium", "large")
    }
    figures["by_count"] = [
        {
            "objects": f"{low}-{high}" if high else f"{low}+",
            "images": len(ids),
            **_count_figures(ground, found, chosen, ids),
        }
        for (low, high), ids in _images_by_count(truth, chosen).items()
        if ids
    ]
    return figures


def operating_point(
    truth: dict[str, Any], detections: Iterable[Detection], categories: Sequence[str], *, iou: float = 0.5
) -> tuple[dict[str, Any], list[ImageScore]]:
    """Match detections one to one with the annotations, best score first.

    Args:
        truth: COCO document.
        detections: COCO results.
        categories: names of the categories that count.
        iou: smallest mask IoU of a match.

    Returns:
        ``precision``, ``recall``, ``f1``, ``mean_iou`` of the matches, ``best_f1`` over all score thresholds
        with its ``best_f1_threshold``; and the counts of every image.
    """
    chosen = {c["id"] for c in truth["categories"] if c["name"] in categories}
    by_image: dict[int, list[Detection]] = {image["id"]: [] for image in truth["images"]}
    for detection in detections:
        if detection["category_id"] in chosen:
            by_image[detection["image_id"]].append(detection)
    annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        if annotation["category_id"] in chosen:
            annotations[annotation["image_id"]].append(annotation)

    scores: list[ImageScore] = []
    flags: list[tuple[float, bool]] = []
    overlaps: list[float] = []
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    for image_id, found in by_image.items():
        matches = _match(found, annotations[image_id], sizes[image_id], iou)
        wanted = sum(not a["iscrowd"] for a in annotations[image_id])
        hits = [overlap for _, overlap in matches if overlap > 0]
        scores.append(ImageScore(image_id, len(hits), len(matches) - len(hits), wanted - len(hits)))
        flags += [(score, overlap > 0) for score, overlap in matches]
        overlaps += hits
    return _point_figures(scores, flags, overlaps), scores


def describe_difficulty(records: Sequence[ImageRecord], categories: Sequence[str]) -> dict[str, float]:
    """Say how hard a set is: how many objects an image has, how small they are and how they overlap."""
    counts, areas, overlaps = [], [], []
    for record in records:
        objects = [a for a in record.annotations if a.category in categories and not a.is_crowd]
        counts.append(len(objects))
        areas += [a.area / (record.height * record.width) for a in objects]
        overlaps += _largest_box_iou(np.array([a.box for a in objects]).reshape(-1, 4)).tolist()
    share = np.array(areas or [math.nan])
    overlap = np.array(overlaps or [math.nan])
    return {
        "objects_per_image_mean": float(np.mean(counts)),
        "objects_per_image_median": float(np.median(counts)),
        "objects_per_image_max": float(np.max(counts)),
        "object_area_median": float(np.median(share)),
        "small_objects_share": float(np.mean(share < 1 / 64)),
        "objects_with_overlapping_box_share": float(np.mean(overlap > 0.05)),
        "largest_box_iou_mean": float(np.mean(overlap)),
    }


def _indexed(truth: dict[str, Any], entries: Sequence[dict[str, Any]]) -> Any:
    """Make a COCO object of annotations or results, with areas relative to their images."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    pixels = {image["id"]: image["height"] * image["width"] for image in truth["images"]}
    annotations = []
    for number, entry in enumerate(entries, start=1):
        area = entry["area"] if "area" in entry else float(coco_mask.area(entry["segmentation"]))
        relative = area / pixels[entry["image_id"]] * _AREA_UNIT
        annotations.append({"iscrowd": 0, **entry, "id": number, "area": relative})
    coco = COCO()
    coco.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _accumulate(
    ground: Any, found: Any, kind: str, categories: list[int], images: list[int] | None = None
) -> Any:
    from pycocotools.cocoeval import COCOeval

    evaluation = COCOeval(ground, found, kind)
    evaluation.params.catIds = categories
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.params.areaRng = [list(limits) for limits in _SIZES.values()]
    evaluation.params.areaRngLbl = list(_SIZES)
    if images is not None:
        evaluation.params.imgIds = images
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _precisions(evaluation: Any, prefix: str, size: str = "all") -> dict[str, float | None]:
    """Mean over categories (and recall levels) at IoU 0.5, at 0.75 and over 0.5 to 0.95."""
    precision = evaluation.eval["precision"][..., list(_SIZES).index(size), 0]  # [IoU, recall, category]
    thresholds = evaluation.params.iouThrs

    def mean(values: NDArray[np.float64]) -> float | None:
        known = values[values > -1]
        return float(known.mean()) if known.size else None

    return {
        f"{prefix}_map50": mean(precision[np.isclose(thresholds, 0.5)]),
        f"{prefix}_map75": mean(precision[np.isclose(thresholds, 0.75)]),
        f"{prefix}_map": mean(precision),
    }


def _size_figures(evaluation: Any, ground: Any, categories: list[int], size: str) -> dict[str, Any]:
    low, high = _SIZES[size]
    areas = [
        a["area"]
        for a in ground.dataset["annotations"]
        if a["category_id"] in categories and not a["iscrowd"]
    ]
    return {"annotations": sum(low <= area < high for area in areas), **_precisions(evaluation, "mask", size)}


def _count_figures(ground: Any, found: Any, categories: list[int], images: list[int]) -> dict[str, Any]:
    return _precisions(_accumulate(ground, found, "segm", categories, images), "mask")


def _images_by_count(truth: dict[str, Any], categories: list[int]) -> dict[tuple[int, int | None], list[int]]:
    counts = {image["id"]: 0 for image in truth["images"]}
    for annotation in truth["annotations"]:
        if annotation["category_id"] in categories and not annotation["iscrowd"]:
            counts[annotation["image_id"]] += 1
    return {
        (low, high): [i for i, count in counts.items() if low <= count and (high is None or count <= high)]
        for low, high in COUNT_BINS
    }


def _match(
    found: list[Detection], annotations: list[dict[str, Any]], size: tuple[int, int], iou: float
) -> list[tuple[float, float]]:
    """Match like COCO: score and IoU of each detection, IoU 0 for a false one; those on crowds are left out."""
    from pycocotools import mask as coco_mask

    found = sorted(found, key=lambda d: -d["score"])[:MAX_DETECTIONS]
    if not found:
        return []
    crowd = [int(a["iscrowd"]) for a in annotations]
    encoded = [_encoded(a["segmentation"], size) for a in annotations]
    ious = np.asarray(coco_mask.iou([d["segmentation"] for d in found], encoded, crowd)).reshape(
        len(found), -1
    )
    free = np.array([not c for c in crowd], dtype=bool)
    matches = []
    for detection, row in zip(found, ious, strict=True):
        same = np.array([a["category_id"] == detection["category_id"] for a in annotations], dtype=bool)
        candidates = np.where(free & same, row, 0.0) if len(row) else np.zeros(1)
        best = int(candidates.argmax())
        if candidates[best] >= iou:
            free[best] = False
            matches.append((float(detection["score"]), float(candidates[best])))
        elif not (len(row) and (row[np.array(crowd, dtype=bool) & same] >= iou).any()):
            matches.append((float(detection["score"]), 0.0))
    return matches


def _encoded(segmentation: Any, size: tuple[int, int]) -> Any:
    """Turn polygons or an RLE of an annotation into a compressed RLE."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *size)
    return segmentation


def _point_figures(
    scores: list[ImageScore], flags: list[tuple[float, bool]], overlaps: list[float]
) -> dict[str, Any]:
    hits = sum(s.true_positives for s in scores)
    found = hits + sum(s.false_positives for s in scores)
    wanted = hits + sum(s.false_negatives for s in scores)
    flags.sort(key=lambda flag: -flag[0])
    cumulative = np.cumsum([hit for _, hit in flags])
    f1 = 2 * cumulative / (np.arange(1, len(flags) + 1) + wanted)
    best = int(f1.argmax()) if len(flags) else None
    return {
        "precision": hits / found if found else None,
        "recall": hits / wanted if wanted else None,
        "f1": 2 * hits / (found + wanted) if found + wanted else None,
        "mean_iou": float(np.mean(overlaps)) if overlaps else None,
        "best_f1": None if best is None else float(f1[best]),
        "best_f1_threshold": None if best is None else flags[best][0],
    }


def _largest_box_iou(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest IoU of every box with another one."""
    if len(boxes) < 2:
        return np.zeros(len(boxes))
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    iou = common / np.maximum(areas[:, None] + areas[None, :] - common, 1e-9)
    np.fill_diagonal(iou, 0)
    largest: NDArray[np.float64] = iou.max(axis=1)
    return largest


def _window_rle(inside: NDArray[np.bool_], top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of a mask given by its window; only the window's columns are scanned."""
    from pycocotools import mask as coco_mask

    strip = np.zeros((inside.shape[1], height), dtype=bool)  # column-major, as COCO counts
    strip[:, top : top + inside.shape[0]] = inside.T
    flat = strip.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False)) + left * height
    runs = np.diff(np.concatenate([[0], changes, [height * width]]))
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
