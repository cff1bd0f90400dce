"""Runs the defect graphs over a data set: logits for calibration, figures for a report."""

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

from mca_perception.datasets.armbench_defects import DefectIndex, DefectPick, DefectView, held_out
from mca_perception.datasets.images import read_rgb
from mca_perception.defects.calibration import HeldOut, calibrate
from mca_perception.defects.figures import UnitResults, unit_figures
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.card import write_described
from mca_perception.deploy.manifest import DefectsSpec
from mca_perception.errors import DatasetError, InvalidImageError
from mca_perception.pipeline.inspection import DefectInspector
from mca_perception.pipeline.references import Progress, no_progress

__all__ = [
    "DefectRun",
    "PartResults",
    "calibrate_thresholds",
    "evaluate_defects",
    "judge_picks",
    "store_thresholds",
]

RATES = (0.01, 0.02, 0.05, 0.1)
VIEW_COUNTS = (1, 2, 3)
_PICKS_AT_ONCE = 16
LATENCY_PICKS = 30


@dataclass(frozen=True)
class PartResults:
    """Logits of a part of the data.

    Attributes:
        picks: the picks that have a readable image.
        views: their readable images, in the order of the rows of ``images``.
        images: logits, labels and picks of all images.
        whole: logits of the picks from all their images; truth by class in ``defects``.
        by_views: the same picks judged from their first images in a random order, by number of images.
    """

    picks: tuple[DefectPick, ...]
    views: tuple[DefectView, ...]
    images: UnitResults
    whole: UnitResults
    by_views: dict[int, UnitResults]


@dataclass(frozen=True)
class DefectRun:
    """Figures of an evaluation, and the results of every part by its name."""

    metrics: dict[str, Any]
    parts: dict[str, PartResults]


def judge_picks(
    inspector: DefectInspector,
    picks: Sequence[DefectPick],
    *,
    seed: int = 0,
    skipped: Counter[str] | None = None,
    latencies: list[float] | None = None,
    progress: Progress = no_progress,
) -> PartResults:
    """Run the graphs over all images of some picks.

    Args:
        inspector: the model.
        picks: what to judge.
        seed: of the order in which the images of a pick are added one by one.
        skipped: counts images that cannot be read, and picks without any other.
        latencies: receives milliseconds from crops to answer of the first picks.
        progress: shows how far it is.

    Raises:
        DatasetError: no image can be read.
    """
    skipped = Counter() if skipped is None else skipped
    kept: list[DefectPick] = []
    views: list[DefectView] = []
    logits: list[NDArray[np.float32]] = []
    evidence: list[NDArray[np.float32]] = []
    for pick in progress(picks, "picks"):
        crops = []
        for view in pick.views:
            try:
                image = read_rgb(view.image)
            except InvalidImageError:
                skipped["image not readable"] += 1
                continue
            crops.append(inspector.crop(image, view.mask(*image.shape[:2])))
            views.append(view)
        if not crops:
            skipped["pick without a readable image"] += 1
            continue
        started = perf_counter()
        found = inspector.judge_crops(np.stack(crops))
        if latencies is not None and len(latencies) < LATENCY_PICKS:
            inspector.judge_views([found[1]])
            latencies.append((perf_counter() - started) * 1000)
        kept.append(pick)
        logits.append(found[0])
        evidence.append(found[1])
    if not kept:
        raise DatasetError("none of the images can be read; check the data folder")
    groups = np.repeat(np.arange(len(kept)), [len(rows) for rows in logits])
    truth = np.array([view.label for view in views], np.int64)
    images = UnitResults(np.concatenate(logits), truth[:, None] == np.arange(3), groups)
    shown = np.stack([images.truth[groups == number].any(axis=0) for number in range(len(kept))])
    shown[:, 0] = ~shown[:, 1:].any(axis=1)
    numbers = np.arange(len(kept))
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(rows)) for rows in evidence]
    by_views = {
        count: UnitResults(
            _judge_views(
                inspector, [rows[order[:count]] for rows, order in zip(evidence, orders, strict=True)]
            ),
            shown,
            numbers,
        )
        for count in VIEW_COUNTS
    }
    whole = UnitResults(_judge_views(inspector, evidence), shown, numbers)
    return PartResults(tuple(kept), tuple(views), images, whole, by_views)


def _judge_views(inspector: DefectInspector, evidence: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    parts = [evidence[start : start + _PICKS_AT_ONCE] for start in range(0, len(evidence), _PICKS_AT_ONCE)]
    return np.concatenate([inspector.judge_views(part) for part in parts])


def evaluate_defects(
    inspector: DefectInspector, index: DefectIndex, *, seed: int = 0, progress: Progress = no_progress
) -> DefectRun:
    """Score the test picks, in all and those of sessions that the model did not learn from.

    Args:
        inspector: the model.
        index: the data.
        seed: of bootstrap intervals and of the order of views.
        progress: shows how far it is.

    Raises:
        DatasetError: there is no test pick, or no image can be read.
    """
    if not index.test:
        raise DatasetError(f"{index.root}/test.csv lists no usable pick; evaluate on data with a test part")
    skipped: Counter[str] = Counter(index.skipped)
    latencies: list[float] = []
    results = judge_picks(
        inspector, index.test, seed=seed, skipped=skipped, latencies=latencies, progress=progress
    )
    split = str(_training_section(inspector.settings).get("split", "official"))
    unseen = {pick.id for pick in index.unseen_sessions(split)}
    disjoint = _only(results, unseen)
    parts = {"official": results, **({"session_disjoint": disjoint} if disjoint is not None else {})}
    figures = {name: _part_figures(inspector.settings, part, seed) for name, part in parts.items()}
    headline = figures["official"]["image"]
    metrics = {
        "task": "defects",
        "unit": "image",
        **{name: headline[name] for name in ("recall@fpr0.01", "recall@fpr0.05")},
        **_headline_point(headline),
        **figures,
        "all_sessions_unseen": len(unseen) == len(index.test),
        "trained_on": split,
        "calibrated_on": inspector.settings.calibrated_on,
        "skipped": dict(skipped),
        "incomplete": dict(index.incomplete),
        "latency_ms": {"pick": _percentiles(latencies[1:] or latencies)},
        "seed": seed,
        "data": _provenance(index.root),
    }
    if disjoint is None:
        metrics["session_disjoint"] = None
    return DefectRun(metrics, parts)


def calibrate_thresholds(
    inspector: DefectInspector,
    index: DefectIndex,
    fpr: float,
    confidence: float,
    *,
    part: str = "calibration",
    seed: int = 0,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Choose thresholds for a false-positive rate, and for those of :data:`RATES` above it that the data allows.

    Args:
        inspector: the model.
        index: the data.
        fpr: rate that has to be kept.
        confidence: with which it has to be kept.
        part: ``calibration``, the sessions that training kept for this; or ``train``, ``test`` or ``all`` of data
            that the model has not seen.
        seed: of the draw of one image per pick.
        progress: shows how far it is.

    Returns:
        Fields for the manifest's ``defects`` section.

    Raises:
        CalibrationError: too few nominal picks; the message says how many are needed.
        DatasetError: unknown part, or no pick in it.
    """
    picks = calibration_picks(inspector.settings, index, part)
    results = judge_picks(inspector, picks, seed=seed, progress=progress)
    labels = results.images.truth.argmax(axis=1)
    found = {
        "image": HeldOut(results.images.logits, labels, results.images.groups),
        "pick": HeldOut(results.whole.logits, results.whole.labels, results.whole.groups),
    }
    calibrated_on = f"{index.root.name}, {part} part: {len(results.picks)} picks"
    fields = calibrate(found, [fpr], confidence, calibrated_on=calibrated_on, seed=seed)
    looser = [rate for rate in RATES if rate > fpr]
    more = calibrate(found, looser, confidence, calibrated_on=calibrated_on, required=False, seed=seed)
    return {**fields, "operating_points": fields["operating_points"] + more["operating_points"]}


def calibration_picks(settings: DefectsSpec, index: DefectIndex, part: str) -> tuple[DefectPick, ...]:
    """Picks of a part of the data, see :func:`calibrate_thresholds`."""
    parts = {"train": index.train, "test": index.test, "all": (*index.train, *index.test)}
    section = _training_section(settings)
    if part == "calibration" and section:
        available = index.training_part(section["split"])
        fraction, seed = section["calibration_fraction"], section["seed"]
        chosen = held_out(available, float(fraction), int(seed), "calibration")[1]
    elif part in parts:
        chosen = parts[part]
    else:
        raise DatasetError(f"part {part!r} is unknown here; give calibration, train, test or all")
    if not chosen:
        raise DatasetError(f"{index.root} has no pick in its {part} part; choose another --part")
    return chosen


def store_thresholds(bundle: ModelBundle, fields: dict[str, Any], directory: Path) -> ModelBundle:
    """Write a bundle with a defect head under new thresholds; its fingerprint stays."""
    settings = bundle.manifest.defects
    assert settings is not None
    defects = DefectsSpec.model_validate(settings.model_dump() | fields)
    return write_described(bundle, bundle.manifest.model_copy(update={"defects": defects}), directory)


def _training_section(settings: DefectsSpec) -> dict[str, Any]:
    """The recipe's section on defects with its seed, as far as the manifest tells."""
    training = (settings.model_extra or {}).get("training", {})
    recipe = training.get("recipe", {})
    return {**recipe["defects"], "seed": recipe.get("seed", 0)} if "defects" in recipe else {}


def _only(results: PartResults, ids: set[str]) -> PartResults | None:
    """Results of some picks alone; None when there is none."""
    kept = np.array([pick.id in ids for pick in results.picks])
    if not kept.any():
        return None
    rows = kept[results.images.groups]
    return PartResults(
        tuple(pick for pick, keep in zip(results.picks, kept, strict=True) if keep),
        tuple(view for view, keep in zip(results.views, rows, strict=True) if keep),
        results.images.only(rows),
        results.whole.only(kept),
        {count: part.only(kept) for count, part in results.by_views.items()},
    )


def _part_figures(settings: DefectsSpec, part: PartResults, seed: int) -> dict[str, Any]:
    image, pick = settings.temperature.get("image", 1.0), settings.temperature.get("pick", 1.0)
    return {
        "picks": len(part.picks),
        "images": len(part.views),
        "image": unit_figures(part.images, image, settings.points_of("image"), seed=seed),
        "pick": unit_figures(part.whole, pick, settings.points_of("pick"), seed=seed),
        "by_views": {
            str(count): unit_figures(results, pick, {}, seed=seed) for count, results in part.by_views.items()
        },
    }


def _headline_point(figures: dict[str, Any]) -> dict[str, Any]:
    """Threshold, promise and measured rate at the strictest operating point of any defect."""
    points = figures["operating_points"]["combined"]
    if not points:
        return {"threshold": None, "promised_fpr": None, "measured_fpr": None}
    return {name: points[0][name] for name in ("threshold", "promised_fpr", "measured_fpr")}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95)}


def _provenance(folder: Path) -> dict[str, Any]:
    """Name of a data folder, and the settings of the synthesiser if it made the data."""
    settings = folder / "synth-defects.json"
    made = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else False
    return {"folder": folder.resolve().name, "synthesised": made, "split": "test"}
