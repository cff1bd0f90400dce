"""Runs the pipeline over a data set and gathers its figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.armbench import VIEWS, IdentificationIndex, Pick, rasterise_polygons
from mca_perception.datasets.coco import CocoSplit, ImageRecord
from mca_perception.datasets.images import read_rgb
from mca_perception.errors import DatasetError, InvalidImageError
from mca_perception.identification.evaluation import (
    Query,
    Ranked,
    ReferenceSet,
    rank_queries,
    recall_figures,
)
from mca_perception.pipeline.pipeline import PerceptionPipeline
from mca_perception.pipeline.references import Progress, embed_products, no_progress
from mca_perception.segmentation.detections import overlapping_detections, published_detections
from mca_perception.segmentation.difficulty import describe_difficulty
from mca_perception.segmentation.evaluation import OBJECT, evaluate_detections
from mca_perception.segmentation.operating_point import ImageScore, best_threshold, operating_point
from mca_perception.segmentation.postprocess import CONTAINERS

__all__ = [
    "IdentificationRun",
    "SegmentationRun",
    "evaluate_identification",
    "evaluate_segmentation",
    "pick_crops",
]

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


@dataclass(frozen=True)
class IdentificationRun:
    """Outcome of an identification evaluation: figures, and every query's ranking within its manifest."""

    metrics: dict[str, Any]
    ranked: list[Ranked]


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
        "latency_ms": _latency_figures(latencies),
        "data": {"file": split.source.name, "sha256": split.sha256, **_provenance(split.source.parent)},
    }
    return SegmentationRun(metrics, truth, detections, published, records, scores, evaluated.precision_recall)


def evaluate_identification(
    pipeline: PerceptionPipeline,
    index: IdentificationIndex,
    *,
    views: int = 1,
    all_references: bool = False,
    seed: int = 0,
    progress: Progress = no_progress,
) -> IdentificationRun:
    """Identify every pick among the products of its container, and score the result.

    Args:
        pipeline: a pipeline whose bundle identifies.
        index: picks and reference images.
        views: images per pick: the one before the pick, then those after it.
        all_references: also rank among all products with references.
        seed: of the bootstrap interval.
        progress: shows how far it is.

    Raises:
        DatasetError: no pick has the view that is asked for.
        BundleError: the bundle does not identify.
    """
    if not 1 <= views <= len(VIEWS):
        raise DatasetError(f"views is {views}; give 1 to {len(VIEWS)}")
    skipped: Counter[str] = Counter(index.skipped)
    latencies: list[dict[str, float]] = []
    queries: list[Query] = []
    for pick in progress(index.picks, "picks"):
        started = perf_counter()
        crops = pick_crops(pipeline, pick, views, skipped)
        if crops:
            embeddings = pipeline.embed_crops(crops)
            latencies.append({"query": (perf_counter() - started) * 1000})
            queries.append(Query(pick.id, pick.product_id, pick.container, embeddings))
    if not queries:
        raise DatasetError(f"{index.root}: no pick has a readable {VIEWS[0]}.jpg; check the Picks folder")
    wanted = set(index.references) if all_references else {p for q in queries for p in q.manifest}
    incomplete = Counter(index.incomplete)
    wanted_images = {p: paths for p, paths in index.references.items() if p in wanted}
    embedded: dict[str, NDArray[np.float32]] = {}
    for products in embed_products(pipeline, wanted_images, incomplete, progress=progress):
        embedded |= products
    references = ReferenceSet.from_products(embedded)
    ranked = rank_queries(queries, references)
    metrics: dict[str, Any] = {
        "task": "identification",
        **recall_figures(ranked, seed=seed),
        "gallery": "container",
        "views": views,
        "skipped": dict(skipped),
        "incomplete": dict(incomplete),
        "products": len(references.products),
        "reference_images": len(references.embeddings),
        "latency_ms": _latency_figures(latencies[1:]),
        "seed": seed,
        "data": _provenance(index.root),
    }
    if all_references:
        everywhere = rank_queries(queries, references, within_manifest=False)
        metrics["all_references"] = recall_figures(everywhere, seed=seed)
    return IdentificationRun(metrics, ranked)


def pick_crops(
    pipeline: PerceptionPipeline, pick: Pick, views: int, skipped: Counter[str] | None = None
) -> list[NDArray[np.uint8]]:
    """Cut the object out of up to ``views`` images of a pick, along its annotated outline where there is one.

    Args:
        pipeline: makes the crops.
        pick: the pick.
        views: images to use; the view before the pick comes first and is required when only one is used.
        skipped: counts a pick without usable image, by reason.

    Returns:
        Crops; empty when the pick cannot be used.
    """
    skipped = Counter() if skipped is None else skipped
    names = [name for name in VIEWS if name in pick.views][:views]
    if views == 1 and names != [VIEWS[0]]:
        skipped[f"pick without {VIEWS[0]}"] += 1
        return []
    crops = []
    for name in names:
        try:
            image = read_rgb(pick.views[name])
        except InvalidImageError:
            continue
        mask = None
        if name in pick.polygons:
            mask = rasterise_polygons(pick.polygons[name], *image.shape[:2])
        crops.append(pipeline.crop(image, mask=mask if mask is not None and mask.any() else None))
    if not crops:
        skipped["pick whose image is not readable"] += 1
    return crops


def _latency_figures(timings: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of every stage."""
    stages = timings[0] if timings else {}
    return {
        stage: {
            "p50": float(np.percentile([t[stage] for t in timings], 50)),
            "p95": float(np.percentile([t[stage] for t in timings], 95)),
        }
        for stage in stages
    }


def _provenance(folder: Path) -> dict[str, Any]:
    """Name of a data folder, and the settings of the synthesiser if it made the data."""
    facts: dict[str, Any] = {"folder": folder.name, "synthesised": False}
    for name in ("synth.json", "synth-picks.json"):
        if (folder / name).is_file():
            facts["synthesised"] = json.loads((folder / name).read_text(encoding="utf-8"))
    return facts
