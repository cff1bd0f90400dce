"""Chooses when a model's answer is accepted and how sure it is, and writes that into its bundle."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from mca_perception.datasets.armbench import IdentificationIndex
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.card import write_described
from mca_perception.deploy.manifest import IdentificationCalibration
from mca_perception.errors import BundleError
from mca_perception.identification.confidence import fit_temperature
from mca_perception.identification.evaluation import rank_queries
from mca_perception.identification.open_set import acceptance_threshold, unknown_similarities
from mca_perception.pipeline.embedding import Embedder
from mca_perception.pipeline.identification_evaluation import answer_figures, embed_picks
from mca_perception.pipeline.references import Progress, no_progress

__all__ = ["CalibrationRun", "calibrate_identification", "store_calibration"]


@dataclass(frozen=True)
class CalibrationRun:
    """A calibration, and its figures on the picks it was made with: they flatter it."""

    calibration: IdentificationCalibration
    metrics: dict[str, Any]


def calibrate_identification(
    pipeline: Embedder,
    index: IdentificationIndex,
    *,
    false_accept: float,
    confidence: float,
    calibrated_on: str,
    views: int = 1,
    all_references: bool = False,
    progress: Progress = no_progress,
) -> CalibrationRun:
    """Choose the acceptance threshold and the temperature on held-out picks.

    Every pick is asked twice: as it is, and with its product taken out of those searched, as if it were unknown.

    Args:
        pipeline: a pipeline whose bundle identifies.
        index: picks that were not trained on, and reference images.
        false_accept: limit of the share of unknown products that may be accepted.
        confidence: probability with which the limit holds.
        calibrated_on: says which picks these are.
        views: images per pick.
        all_references: search all products, not the container's.
        progress: shows how far it is.

    Raises:
        DatasetError: there are too few picks to show such a rate, or all or none are identified correctly.
        BundleError: the bundle does not identify.
    """
    picks = embed_picks(pipeline, index, views=views, all_references=all_references, progress=progress)
    ranked = rank_queries(picks.queries, picks.references, within_manifest=not all_references)
    known = [r for r in ranked if r.rank is not None]
    calibration = IdentificationCalibration(
        views=views,
        gallery="all" if all_references else "container",
        threshold=acceptance_threshold(unknown_similarities(ranked), false_accept, confidence),
        temperature=fit_temperature(
            [r.similarities for r in known], np.array([r.rank == 1 for r in known], dtype=bool)
        ),
        false_accept=false_accept,
        confidence=confidence,
        calibrated_on=calibrated_on,
    )
    metrics = {
        **answer_figures(ranked, calibration, pipeline.identification_settings.temperature),
        "queries": len(ranked),
        "skipped": dict(picks.skipped),
        "products": len(picks.references.products),
    }
    return CalibrationRun(calibration, metrics)


def store_calibration(
    bundle: ModelBundle, calibration: IdentificationCalibration, directory: str | os.PathLike[str]
) -> ModelBundle:
    """Write a bundle with a calibration, which takes the place of one for the same views and gallery.

    The fingerprint stays, so galleries remain valid.

    Args:
        bundle: where the files come from; may lie in ``directory``.
        calibration: to add.
        directory: bundle folder to write.

    Raises:
        BundleError: the bundle does not identify, or ``directory`` holds something else.
    """
    settings = bundle.manifest.identification
    if settings is None:
        raise BundleError(f"model bundle {bundle.path} does not identify; choose one that does")
    kept = [
        c for c in settings.calibration if (c.views, c.gallery) != (calibration.views, calibration.gallery)
    ]
    calibrations = tuple(sorted([*kept, calibration], key=lambda c: (c.gallery, c.views)))
    identification = settings.model_copy(update={"calibration": calibrations})
    manifest = bundle.manifest.model_copy(update={"identification": identification})
    return write_described(bundle, manifest, directory)
