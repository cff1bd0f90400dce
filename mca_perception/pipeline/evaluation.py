"""Runs the pipeline over a data set and gathers its figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.coco import CocoSplit, ImageRecord
from mca_perception.errors import DatasetError, InvalidImageError
from mca_perception.pipeline.pipeline import PerceptionPipeline
from mca_perception.pipeline.references import Progress, no_progress
from mca_perception.segmentation.detections import overlapping_detections, published_detections
from mca_perception.segmentation.difficulty import describe_difficulty
from mca_perception.segmentation.evaluation import OBJECT, evaluate_detections
from mca_perception.segmentation.operating_point import ImageScore, best_threshold, operating_point
from mca_perception.segmentation.postprocess import CONTAINERS

__all__ = ["SegmentationRun", "evaluate_segmentation", "latency_figures", "provenance"]

SCORE_FLOOR = 0.05
"""Detections below it do not enter average precision."""

LATENCY_IMAGES = 30


@dataclass(frozen=True)
class SegmentationRun:
    """Outcome of a segmentation evaluation.

    Attributes:
        metrics: everything for ``metrics.json`` that the run itself knows.
        truth: COCO document that was evaluated against.
        detections: COCO results whose masks may overlap; average precision is computed from these.
        published: COCO results as the nodes publish them.
        records: the images that were evaluated.
        scores: matches of every image at the operating point.
        precision_recall: precision at IoU 0.5 by category, at recall 0, 0.01, ..., 1.
    """

    metrics: dict[str, Any]
    truth: dict[str, Any]
    detections: list[dict[str, Any]]
    published: list[dict[str, Any]]
    records: list[ImageRecord]
    scores: list[ImageScore]
    precision_recall: dict[str, NDArray[np.float64]]


def evaluate_segmentation(
    pipeline: PerceptionPipeline,
    split: CocoSplit,
    *,
    score_floor: float = SCORE_FLOOR,
    seed: int = 0,
    progress: Progress = no_progress,
) -> SegmentationRun:
    """Segment every image of a split and score the result.

    Masks are kept as run lengths only, so memory grows by kilobytes per object.

    Args:
        pipeline: a pipeline whose bundle segments.
        split: images with their annotations.
        score_floor: detections below it are not looked at.
        seed: of the bootstrap interval.
        progress: shows how far it is.

    Raises:
        DatasetError: the data has none of the model's categories, or no image can be read.
        BundleError: the bundle does not segment.
    """
    labels = pipeline.segmentation_settings.labels
    categories = [name for name in labels if name in split.categories]
    if not categories:
        raise DatasetError(
            f"{split.source} has the categories {sorted(split.categories)}, the model finds {list(labels)}; "
            "evaluate on data that shares a category"
        )
    unknown = min(split.categories.values()) - 1  # for classes that the data does not annotate
    ids = {name: split.categories.get(name, unknown) for name in labels}
    skipped: Counter[str] = Counter(split.skipped)
    records: list[ImageRecord] = []
    latencies: list[dict[str, float]] = []
    detections: list[dict[str, Any]] = []
    published: list[dict[str, Any]] = []
    for record in progress(split.records, "images"):
        try:
            image = record.read()
        except InvalidImageError:
            skipped["image not readable"] += 1
            continue
        records.append(record)
        candidates = pipeline.candidates(image, score_threshold=min(score_floor, pipeline.score_threshold))
        for results, new in (
            (detections, overlapping_detections(candidates.above(score_floor), record.image_id, labels, ids)),
            (
                published,
                published_detections(candidates, pipeline.score_threshold, record.image_id, labels, ids),
            ),
        ):
            results += [detection for detection in new if detection["category_id"] != unknown]
        if len(latencies) < LATENCY_IMAGES:  # after the call above, which warmed up
            latencies.append(pipeline.perceive(image).timings_ms)
    if not records:
        raise DatasetError(f"{split.source}: no image can be read; check the images folder beside it")
    truth = split.to_coco(tuple(records))
    evaluated = evaluate_detections(truth, detections, seed=seed, progress=progress)
    counted = [name for name in categories if name not in CONTAINERS]
    found = [split.categories[name] for name in counted]
    point, scores = operating_point(truth, published, found, progress=progress)
    metrics = {
        "task": "segmentation",
        **evaluated.metrics,
        "categories_in_data": sorted(split.categories),
        "categories_of_model": list(labels),
        "operating_point": {
            "score_threshold": pipeline.score_threshold,
            "iou": 0.5,
            "categories": counted,
            **point,
            **best_threshold(evaluated.masks, found),
        },
        "score_floor": score_floor,
        "images": len(records),
        "annotations": sum(len(record.annotations) for record in records),
        "skipped": dict(skipped),
        "corrected": dict(split.corrected),
        "difficulty": describe_difficulty(records, [OBJECT] if OBJECT in split.categories else categories),
        "latency_ms": latency_figures(latencies),
        "data": {"file": split.source.name, "sha256": split.sha256, **provenance(split.source.parent)},
    }
    return SegmentationRun(metrics, truth, detections, published, records, scores, evaluated.precision_recall)


def latency_figures(timings: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of every stage."""
    stages = timings[0] if timings else {}
    return {
        stage: {
            "p50": float(np.percentile([t[stage] for t in timings], 50)),
            "p95": float(np.percentile([t[stage] for t in timings], 95)),
        }
        for stage in stages
    }


def provenance(folder: Path) -> dict[str, Any]:
    """Name of a data folder, and the settings of the synthesiser if it made the data."""
    facts: dict[str, Any] = {"folder": folder.name, "synthesised": False}
    for name in ("synth.json", "synth-picks.json"):
        if (folder / name).is_file():
            facts["synthesised"] = json.loads((folder / name).read_text(encoding="utf-8"))
    return facts
