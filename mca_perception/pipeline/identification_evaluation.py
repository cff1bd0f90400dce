"""Runs the identification of picks over a data set and gathers its figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.armbench import VIEWS, IdentificationIndex, Pick, rasterise_polygons
from mca_perception.datasets.images import read_rgb
from mca_perception.deploy.manifest import IdentificationCalibration
from mca_perception.errors import DatasetError, InvalidImageError
from mca_perception.identification.confidence import confidences, reliability
from mca_perception.identification.evaluation import (
    Query,
    Ranked,
    ReferenceSet,
    rank_queries,
    recall_figures,
)
from mca_perception.identification.open_set import open_set_figures
from mca_perception.identification.views import BEFORE_PICK, choose_views
from mca_perception.pipeline.embedding import Embedder
from mca_perception.pipeline.evaluation import latency_figures, provenance
from mca_perception.pipeline.references import Progress, embed_products, no_progress

__all__ = [
    "EmbeddedPicks",
    "IdentificationRun",
    "answer_figures",
    "embed_picks",
    "evaluate_identification",
    "pick_crops",
]

DEFAULT_TEMPERATURE = 1.0
"""Of the uncalibrated confidence, for bundles that do not state what they were trained with."""


@dataclass(frozen=True)
class EmbeddedPicks:
    """The picks of a data set and the products they are compared with, as embeddings.

    Attributes:
        queries: one per usable pick, as the model identifies it.
        best_view: the same with every view by itself; equal to ``queries`` where no network joins views.
        references: embeddings of products.
        skipped: picks left out, by reason.
        incomplete: picks, products and images kept or left out although something is missing, by what.
        views_used: usable picks by number of views.
        latencies: milliseconds of the stages, per pick.
    """

    queries: list[Query]
    best_view: list[Query]
    references: ReferenceSet
    skipped: Counter[str]
    incomplete: Counter[str]
    views_used: Counter[int] = field(default_factory=Counter)
    latencies: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class IdentificationRun:
    """Outcome of an identification evaluation: everything for ``metrics.json``, and every query's ranking."""

    metrics: dict[str, Any]
    ranked: list[Ranked]


def evaluate_identification(
    pipeline: Embedder,
    index: IdentificationIndex,
    *,
    views: int = 1,
    all_references: bool = False,
    seed: int = 0,
    progress: Progress = no_progress,
) -> IdentificationRun:
    """Identify every pick among the products of its container, or among all products, and score the result.

    Args:
        pipeline: a pipeline whose bundle identifies.
        index: picks and reference images.
        views: images per pick: the one before the pick, then those after it.
        all_references: rank among all products with references; ``container`` then has the other figures.
        seed: of the bootstrap interval.
        progress: shows how far it is.

    Raises:
        DatasetError: no pick has the view that is asked for.
        BundleError: the bundle does not identify.
    """
    picks = embed_picks(pipeline, index, views=views, all_references=all_references, progress=progress)
    settings = pipeline.identification_settings

    def scored(queries: list[Query], *, within_manifest: bool) -> tuple[list[Ranked], dict[str, Any]]:
        ranked = rank_queries(queries, picks.references, within_manifest=within_manifest)
        calibration = settings.calibration_for(views, within_manifest=within_manifest)
        figures = recall_figures(ranked, seed=seed)
        return ranked, {**figures, **answer_figures(ranked, calibration, settings.temperature)}

    ranked, figures = scored(picks.queries, within_manifest=not all_references)
    fused = views > 1 and settings.views is not None
    skipped = dict(picks.skipped)
    metrics: dict[str, Any] = {
        "task": "identification",
        **figures,
        "gallery": "all" if all_references else "container",
        "views": views,
        "views_used": {str(count): picks.views_used[count] for count in sorted(picks.views_used)},
        "view_fusion": "network" if fused else "most similar view",
        "reference_fusion": settings.reference_fusion or "most similar reference",
        "picks": len(picks.queries) + sum(skipped.values()),
        "skipped": skipped,
        "incomplete": dict(picks.incomplete),
        "products": len(picks.references.products),
        "reference_images": len(picks.references.embeddings),
        "latency_ms": latency_figures(picks.latencies[1:]),
        "seed": seed,
        "data": provenance(index.root),
    }
    if fused:
        single = rank_queries(picks.best_view, picks.references, within_manifest=not all_references)
        metrics["most_similar_view"] = recall_figures(single, seed=seed)
    if all_references:
        metrics["container"] = scored(picks.queries, within_manifest=True)[1]
    return IdentificationRun(metrics, ranked)


def embed_picks(
    pipeline: Embedder,
    index: IdentificationIndex,
    *,
    views: int = 1,
    all_references: bool = False,
    progress: Progress = no_progress,
) -> EmbeddedPicks:
    """Embed picks and the reference images of the products in their containers, or of all products.

    Arguments and errors as for :func:`evaluate_identification`.
    """
    if not 1 <= views <= len(VIEWS):
        raise DatasetError(f"views is {views}; give 1 to {len(VIEWS)}")
    skipped: Counter[str] = Counter(index.skipped)
    used: Counter[int] = Counter()
    latencies: list[dict[str, float]] = []
    queries: list[Query] = []
    single: list[Query] = []
    for pick in progress(index.picks, "picks"):
        started = perf_counter()
        crops = pick_crops(pipeline, pick, views, skipped)
        if not crops:
            continue
        rows = pipeline.embed_crops(list(crops.values()))
        fused = pipeline.fuse_views(dict(zip(crops, rows, strict=True)))
        latencies.append({"query": (perf_counter() - started) * 1000})
        used[len(crops)] += 1
        for found, embeddings in ((queries, fused), (single, rows)):
            found.append(Query(pick.id, pick.product_id, pick.container, embeddings))
    if not queries:
        raise DatasetError(f"{index.root}: no pick has a readable {BEFORE_PICK}.jpg; check the Picks folder")
    wanted = set(index.references) if all_references else {p for q in queries for p in q.manifest}
    incomplete = Counter(index.incomplete)
    embedded: dict[str, NDArray[np.float32]] = {}
    wanted_images = {p: paths for p, paths in index.references.items() if p in wanted}
    for products in embed_products(pipeline, wanted_images, incomplete, progress=progress):
        embedded |= products
    references = ReferenceSet.from_products(embedded)
    return EmbeddedPicks(queries, single, references, skipped, incomplete, used, latencies)


def answer_figures(
    ranked: Sequence[Ranked], calibration: IdentificationCalibration | None, trained: float | None
) -> dict[str, Any]:
    """Reliability of the confidence, before and after calibration, and what the threshold does.

    Args:
        ranked: queries that took no part in the calibration.
        calibration: of the bundle for such queries, if it has one.
        trained: temperature of the training loss, for the confidence before calibration.

    Returns:
        ``confidence`` (``temperature`` and figures ``before`` and, with a calibration, ``after``; over queries whose
        truth is among the candidates) and, with a calibration, ``open_set``.
    """
    known = [r for r in ranked if r.rank is not None]
    correct = np.array([r.rank == 1 for r in known], dtype=bool)
    similarities = [r.similarities for r in known]
    before = DEFAULT_TEMPERATURE if trained is None else trained
    figures: dict[str, Any] = {
        "confidence": {
            "before": {
                "temperature": before,
                **reliability(confidences(similarities, before), correct),
            }
        }
    }
    if calibration is not None:
        after = calibration.temperature
        figures["confidence"]["after"] = {
            "temperature": after,
            **reliability(confidences(similarities, after), correct),
        }
        figures["open_set"] = {
            **open_set_figures(ranked, calibration.threshold, calibration.confidence),
            "stated_false_accept_rate": calibration.false_accept,
            "calibrated_on": calibration.calibrated_on,
        }
    return figures


def pick_crops(
    pipeline: Embedder, pick: Pick, views: int, skipped: Counter[str] | None = None
) -> dict[int, NDArray[np.uint8]]:
    """Cut the object out of up to ``views`` images of a pick, along its annotated outline where there is one.

    Args:
        pipeline: makes the crops.
        pick: the pick.
        views: images to use; the view before the pick comes first and is required when only one is used.
        skipped: counts a pick without usable image, by reason.

    Returns:
        Crops by slot (see :func:`.choose_views`); empty when the pick cannot be used.
    """
    skipped = Counter() if skipped is None else skipped
    chosen = choose_views(pick.views, views)
    if not chosen:
        skipped[f"pick without {BEFORE_PICK}"] += 1
        return {}
    crops = {}
    for slot, name in chosen.items():
        try:
            image = read_rgb(pick.views[name])
        except InvalidImageError:
            continue
        mask = None
        if name in pick.polygons:
            mask = rasterise_polygons(pick.polygons[name], *image.shape[:2])
        crops[slot] = pipeline.crop(image, mask=mask if mask is not None and mask.any() else None)
    if not crops:
        skipped["pick whose image is not readable"] += 1
    return crops
