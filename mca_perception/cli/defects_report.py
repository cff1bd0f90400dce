"""What `mca eval armbench-defects` writes: figures, tables, plots and the worst cases with their heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from mca_perception.cli import plots, reports
from mca_perception.cli.contact_sheets import Image, captioned, grid, write_image
from mca_perception.datasets.armbench_defects import LABELS, DefectView, read_defect_images
from mca_perception.datasets.images import read_rgb
from mca_perception.defects.figures import RATES, UnitResults
from mca_perception.defects.metrics import Curves, curves
from mca_perception.defects.scores import SCORES, scores_of
from mca_perception.pipeline.defect_evaluation import DefectRun, PartResults, evaluate_defects
from mca_perception.pipeline.heat_maps import heat_overlay
from mca_perception.pipeline.inspection import DefectInspector

__all__ = ["curve_of", "evaluate"]

_TILE = 160
_WORST = 12
_PARTS = {"official": "official test list", "session_disjoint": "test picks of sessions not learnt from"}


def evaluate(data: Path, model: Path, out: Path, *, limit: int | None, seed: int) -> None:
    """Evaluate a bundle and write ``metrics.json``, ``report.md`` and pictures to ``out``."""
    inspector = DefectInspector.from_bundle(model)
    index = read_defect_images(data, limit=limit)
    reports.new_folder(out)
    with reports.progress_bar() as progress:
        run = evaluate_defects(inspector, index, seed=seed, progress=progress)
    metrics = {
        **run.metrics,
        "model": reports.model_facts(inspector.bundle),
        **reports.environment(("matplotlib", "scipy")),
    }
    metrics["data"] = {**metrics["data"], "limit": limit}
    if plots.can_plot():
        plot_curves(run, out / "roc.png", out / "precision_recall.png")
    worst_cases(inspector, run.parts["official"], out / "contact_sheet.png")
    reports.write_text(out / "report.md", report(metrics, pictures=plots.can_plot()))
    reports.write_json(out / "metrics.json", metrics)
    for unit in ("image", "pick"):
        found = metrics["official"][unit]["recall@fpr0.01"]
        line = "  ".join(f"{name} {_number(value)}" for name, value in found.items())
        typer.echo(f"{unit:6} recall@fpr0.01  {line}")
    typer.echo(
        f"threshold {_number(metrics['threshold'])}  promised_fpr {_number(metrics['promised_fpr'])}  "
        f"measured_fpr {_number(metrics['measured_fpr'])} -> {out / 'report.md'}"
    )


def report(metrics: dict[str, Any], *, pictures: bool) -> str:
    """Markdown page of an evaluation."""
    sections = [reports.opening("Defects", metrics)]
    sections.append(
        "Negatives are nominal images or picks. A pick counts as defective when any of its images is labelled so; its "
        "answer joins all its images. Recall at a rate is the best that any threshold reaches on the test data itself; "
        "*at the calibrated threshold* is what a line gets, with a threshold chosen on held-out data "
        f"({metrics['calibrated_on'] or 'this bundle is not calibrated'}).\n"
    )
    if metrics["all_sessions_unseen"]:
        sections.append(
            "No test pick shares a session with a training pick: both parts are the same picks.\n"
        )
    for part, title in _PARTS.items():
        if metrics[part] is None or (part == "session_disjoint" and metrics["all_sessions_unseen"]):
            continue
        sections += _part(metrics[part], title)
    if pictures:
        sections.append("![ROC](roc.png)\n\n![Precision over recall](precision_recall.png)\n")
    sections.append(reports.closing(metrics))
    return "\n".join(sections)


def _part(figures: dict[str, Any], title: str) -> list[str]:
    rows = []
    for unit in ("image", "pick"):
        for name in SCORES:
            part = figures[unit]
            recalls = [
                _with_interval(part[f"recall@fpr{rate}"][name], part[f"recall@fpr{rate}_interval95"][name])
                for rate in RATES
            ]
            rest = [part[f"recall@fpr{rate}_one_vs_rest"][name] for rate in RATES]
            rows.append(
                (
                    unit,
                    name,
                    part["positives"][name],
                    part["nominal"],
                    *recalls,
                    *rest,
                    part["roc_auc"].get(name),
                )
            )
    header = (
        "unit",
        "defect",
        "defective",
        "nominal",
        "recall at FPR 1 %",
        "at 5 %",
        "1 %, against the rest",
    )
    return [
        f"## {title.capitalize()}: {figures['picks']} picks, {figures['images']} images\n",
        reports.table((*header, "5 %, against the rest", "ROC AUC"), rows),
        "### At the calibrated threshold\n",
        _points_table(figures),
        "### By number of views\n",
        _views_table(figures),
        "### Argmax, one class against the rest, as published baselines count\n",
        _argmax_table(figures),
    ]


def _points_table(figures: dict[str, Any]) -> str:
    rows = [
        (
            unit,
            name,
            f"{point['threshold']:.6f}",
            f"{point['promised_fpr']:g} at {point['confidence']:g}",
            _with_interval(point["measured_fpr"], point["measured_fpr_interval95"]),
            _with_interval(point["recall"], point["recall_interval95"]),
            point["calibration_negatives"],
        )
        for unit in ("image", "pick")
        for name, points in figures[unit]["operating_points"].items()
        for point in points
    ]
    if not rows:
        return "The bundle has no thresholds: too few nominal picks were held out. Run `mca calibrate thresholds`.\n"
    return reports.table(
        ("unit", "score", "alarm above", "promised FPR", "measured FPR", "recall", "held-out nominal"), rows
    )


def _views_table(figures: dict[str, Any]) -> str:
    parts = [*figures["by_views"].items(), ("all", figures["pick"])]
    rows = [
        (views, *(part[f"recall@fpr{rate}"][name] for rate in RATES for name in SCORES))
        for views, part in parts
    ]
    return reports.table(
        ("images of a pick", *(f"{name}, {rate:.0%}" for rate in RATES for name in SCORES)), rows
    )


def _argmax_table(figures: dict[str, Any]) -> str:
    rows = [
        (unit, name, found["precision"], found["recall"], found["fpr"], found["positives"])
        for unit in ("image", "pick")
        for name, found in figures[unit]["argmax"].items()
    ]
    return reports.table(("unit", "defect", "precision", "recall", "FPR", "defective"), rows)


def plot_curves(run: DefectRun, roc: Path, precision_recall: Path) -> None:
    """Draw ROC and precision-recall curves of all units of the official part."""
    part = run.parts["official"]
    units = {"image": part.images, "one view of a pick": part.by_views[1], "pick, all views": part.whole}
    roc_figure, roc_axes = plots.new_axes()
    pr_figure, pr_axes = plots.new_axes()
    for unit, results in units.items():
        for name, style in zip(SCORES, (":", "--", "-"), strict=True):
            found = curve_of(results, name)
            if not found.positives or not found.negatives:
                continue
            label = f"{unit}, {name}"
            roc_axes.plot(np.maximum(found.fpr, 1e-4), found.recall, style, label=label)
            pr_axes.plot(found.recall, found.precision, style, label=label)
    for rate in RATES:
        roc_axes.axvline(rate, color="grey", linewidth=0.8)
    roc_axes.set(
        title="Recall over false-positive rate", xlabel="false-positive rate", ylabel="recall", xscale="log"
    )
    pr_axes.set(title="Precision over recall", xlabel="recall", ylabel="precision", xlim=(0, 1))
    plots.finish_plot(roc_figure, roc_axes, roc)
    plots.finish_plot(pr_figure, pr_axes, precision_recall)


def curve_of(results: UnitResults, name: str) -> Curves:
    """Curve of one score of a unit; negatives are the nominal rows."""
    counted = results.truth[:, 0] | _truth(results, name)
    return curves(scores_of(results.logits, 1.0)[name][counted], _truth(results, name)[counted])


def _truth(results: UnitResults, name: str) -> NDArray[np.bool_]:
    return ~results.truth[:, 0] if name == "combined" else results.truth[:, LABELS.index(name)]


def worst_cases(inspector: DefectInspector, part: PartResults, path: Path) -> None:
    """Write a picture of the strongest false alarms, the clearest misses and some right alarms, with heat maps."""
    scores = scores_of(part.images.logits, inspector.temperature("image"))["combined"]
    nominal = part.images.truth[:, 0]
    falling, rising = np.argsort(-scores), np.argsort(scores)
    groups = (
        ("false alarm", [n for n in falling if nominal[n]]),
        ("missed", [n for n in rising if not nominal[n]]),
        ("found", [n for n in falling if not nominal[n]]),
    )
    tiles: list[Image] = []
    for title, rows in groups:
        for number in rows[:_WORST]:
            tiles.append(_tile(inspector, part.views[number], float(scores[number]), title))
    write_image(path, grid(tiles, columns=4))


def _tile(inspector: DefectInspector, view: DefectView, score: float, title: str) -> Image:
    image = read_rgb(view.image)
    crop = inspector.crop(image, view.mask(*image.shape[:2]))
    side = (_TILE, _TILE)
    plain = np.asarray(cv2.resize(crop, side, interpolation=cv2.INTER_LINEAR), np.uint8)
    hot = np.asarray(cv2.resize(heat_overlay(crop, inspector.heat_map(crop)), side), np.uint8)
    caption = f"{title} {score:.3f}: {LABELS[view.label]} {view.sublabel}"
    return captioned(np.concatenate([plain, hot], axis=1), caption[:48])


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return "-"
    return f"{value:.4f} ({interval[0]:.4f} to {interval[1]:.4f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
