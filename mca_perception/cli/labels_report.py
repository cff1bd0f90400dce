"""What `mca labels audit` writes: list, pictures, report and figures."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.classification.evaluation import nearest_neighbours
from mca_perception.classification.label_audit import (
    NEIGHBOURS,
    DetectionCurve,
    LabelAudit,
    audit_labels,
    detection_curve,
)
from mca_perception.classification.label_noise import InjectedErrors, Kind, inject_label_errors
from mca_perception.classification.views import plain_view
from mca_perception.cli import reports
from mca_perception.cli.contact_sheets import captioned, grid, write_image
from mca_perception.cli.plots import can_plot, finish_plot, new_axes
from mca_perception.datasets.images import read_rgb
from mca_perception.datasets.labelled_images import LabelledImages
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.pipeline.image_embeddings import ImageEmbeddings

SHOWN = 36
TILE = 130


class AuditSettings(NamedTuple):
    """Options of the command."""

    split: str | None
    features: str
    top: float
    inject: float
    kind: str
    seed: int


class _Audited(NamedTuple):
    """Everything that is written about one audit; rows are those of the readable images."""

    images: LabelledImages
    usable: NDArray[np.int64]
    features: NDArray[np.float32]
    errors: InjectedErrors
    audit: LabelAudit
    curve: DetectionCurve | None

    def name(self, label: int) -> str:
        """Of a class."""
        return self.images.classes[label]


def write_audit(
    bundle: ModelBundle, images: LabelledImages, rows: ImageEmbeddings, settings: AuditSettings, out: Path
) -> str:
    """Judge the labels and write the files; returns a line for the console."""
    features = rows.embeddings if settings.features == "embedding" else rows.statistics
    labels = images.labels[rows.usable]
    kind: Kind = "look-alike" if settings.kind == "look-alike" else "symmetric"
    errors = inject_label_errors(
        labels, settings.inject, kind, seed=settings.seed, embeddings=rows.embeddings
    )
    audit = audit_labels(features, errors.labels, seed=settings.seed)
    curve = detection_curve(audit.order, errors.changed) if errors.changed.any() else None
    audited = _Audited(images, rows.usable, features, errors, audit, curve)
    listed = audit.order[: max(1, round(settings.top * len(labels)))]
    reports.write_text(out / "suspicious.csv", _csv(audited, listed))
    if settings.inject:
        reports.write_text(out / "injected.csv", _injected_csv(audited, labels))
    write_image(out / "contact_sheet.png", grid([_tile(audited, i) for i in listed[:SHOWN]], columns=3))
    if curve is not None and can_plot():
        _plot(curve, settings, out / "detection.png")
    metrics = _metrics(bundle, audited, rows, settings, len(listed))
    reports.write_json(out / "metrics.json", metrics)
    reports.write_text(out / "report.md", _report(audited, metrics, listed))
    found = f", {100 * curve.recall_at_tenth:.0f} % of the injected errors in the first 10 %" if curve else ""
    return (
        f"{metrics['contradicted']} of {len(labels)} labels contradicted, {len(listed)} listed{found} "
        f"-> {out / 'suspicious.csv'}"
    )


def _csv(audited: _Audited, listed: NDArray[np.int64]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("rank", "path", "given", "suggested", "score", *(["injected"] if audited.curve else [])))
    for rank, i in enumerate(listed, start=1):
        row = [rank, audited.images.relative(int(audited.usable[i])), audited.name(audited.errors.labels[i])]
        row += [audited.name(audited.audit.suggested[i]), f"{audited.audit.scores[i]:.4f}"]
        writer.writerow(row + ([int(audited.errors.changed[i])] if audited.curve else []))
    return stream.getvalue()


def _injected_csv(audited: _Audited, labels: NDArray[np.int64]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("path", "true", "given"))
    for i in np.flatnonzero(audited.errors.changed):
        path = audited.images.relative(int(audited.usable[i]))
        writer.writerow((path, audited.name(labels[i]), audited.name(audited.errors.labels[i])))
    return stream.getvalue()


def _tile(audited: _Audited, i: int) -> NDArray[np.uint8]:
    """The image, then the most similar other image of its given and of the suggested class."""
    given, suggested = int(audited.errors.labels[i]), int(audited.audit.suggested[i])
    shown = [i, _most_similar(audited, i, given), _most_similar(audited, i, suggested)]
    canvas = np.full((TILE, 3 * TILE + 8, 3), 255, np.uint8)
    for column, number in enumerate(shown):
        if number is not None:
            image = read_rgb(audited.images.paths[audited.usable[number]], oriented=True)
            left = column * (TILE + 4)
            canvas[:, left : left + TILE] = plain_view(image, TILE)
    if audited.errors.changed[i]:
        cv2.rectangle(canvas, (0, 0), (TILE - 1, TILE - 1), (220, 40, 40), 3)
    names = f"{audited.name(given)[:20]} -> {audited.name(suggested)[:20]}"
    return captioned(canvas, f"{names}  {audited.audit.scores[i]:.2f}")


def _most_similar(audited: _Audited, i: int, label: int) -> int | None:
    others = np.flatnonzero(audited.errors.labels == label)
    others = others[others != i]
    if not len(others):
        return None
    found, _ = nearest_neighbours(audited.features[i : i + 1], audited.features[others], 1)
    return int(others[found[0, 0]])


def _metrics(
    bundle: ModelBundle, audited: _Audited, rows: ImageEmbeddings, settings: AuditSettings, listed: int
) -> dict[str, Any]:
    audit, curve = audited.audit, audited.curve
    metrics: dict[str, Any] = {
        "task": "label audit",
        "model": reports.model_facts(bundle),
        "data": {
            "folder": audited.images.root.name,
            "split": settings.split,
            "images": len(audited.usable),
            "classes": len(audited.images.classes),
        },
        "skipped": dict(audited.images.skipped + rows.skipped),
        "method": {
            "features": settings.features,
            "neighbours": NEIGHBOURS,
            "space": "within-class whitening, fitted to the images of other folds",
        },
        "seed": settings.seed,
        "contradicted": int((audit.scores > 0).sum()),
        "listed": listed,
        "estimated_error_rate": round(audit.error_rate, 4),
    }
    if curve is not None:
        wrong = audited.errors.changed
        true = audited.images.labels[audited.usable]
        metrics["injected"] = {
            "kind": settings.kind,
            "rate": settings.inject,
            "errors": int(wrong.sum()),
            "recall_at_tenth": round(curve.recall_at_tenth, 4),
            "average_precision": round(curve.average_precision, 4),
            "precision_at_errors": round(float(curve.precision[int(wrong.sum()) - 1]), 4),
            "suggestion_is_true_label": round(float((audit.suggested == true)[wrong].mean()), 4),
        }
    return {**metrics, **reports.environment()}


def _report(audited: _Audited, metrics: dict[str, Any], listed: NDArray[np.int64]) -> str:
    data, model = metrics["data"], metrics["model"]
    parts = [
        f"# Suspicious labels of {data['folder']}\n",
        f"Model {model['name']} {model['version']} (`{model['fingerprint']}`), {data['images']} images of "
        f"{data['classes']} classes, compared by {metrics['method']['features']}. "
        f"{metrics['contradicted']} labels are contradicted by the {NEIGHBOURS} most similar images; estimated "
        f"share of wrong labels: {100 * metrics['estimated_error_rate']:.1f} %. `suspicious.csv` has {len(listed)}.\n",
        "The score is the probability of the suggested class less that of the given one. Look-alike classes that the "
        "model cannot tell apart come up too: the list is for a person to look through.\n",
    ]
    if "injected" in metrics:
        injected = metrics["injected"]
        parts += [
            "## Injected errors\n",
            f"{injected['errors']} labels ({100 * injected['rate']:.1f} %, {injected['kind']}, seed "
            f"{metrics['seed']}) were made wrong first; `injected.csv` records them.\n",
            reports.table(
                ("figure", "value"),
                [
                    ("found in the first 10 %", injected["recall_at_tenth"]),
                    ("average precision", injected["average_precision"]),
                    (f"precision of the first {injected['errors']}", injected["precision_at_errors"]),
                    ("suggestion is the true label", injected["suggestion_is_true_label"]),
                ],
            ),
        ]
        parts += ["![precision and recall](detection.png)\n"] if can_plot() else []
    rows = [
        (
            rank,
            audited.images.relative(int(audited.usable[i])),
            audited.name(audited.errors.labels[i]),
            audited.name(audited.audit.suggested[i]),
            float(audited.audit.scores[i]),
        )
        for rank, i in enumerate(listed[:SHOWN], start=1)
    ]
    parts += ["## Most suspicious\n", reports.table(("rank", "image", "given", "suggested", "score"), rows)]
    parts += [
        "Each row of the picture: the image, then the most similar one of the given and of the suggested class.\n"
    ]
    parts += ["![contact sheet](contact_sheet.png)\n", "## Left out\n", reports.left_out(metrics)]
    return "\n".join([*parts, reports.machine(metrics)])


def _plot(curve: DetectionCurve, settings: AuditSettings, path: Path) -> None:
    figure, axes = new_axes()
    share = np.arange(1, len(curve.recall) + 1) / len(curve.recall)
    axes.plot(share, curve.recall, label="recall: injected errors found")
    axes.plot(share, curve.precision, label="precision: images that are injected errors")
    axes.plot(share, share, ":", color="grey", label="recall of a random order")
    axes.axvline(0.1, color="grey", linewidth=0.8)
    axes.set(
        title=f"{100 * settings.inject:.0f} % {settings.kind} errors, seed {settings.seed}",
        xlabel="share of the images looked at",
        xlim=(0, 0.5),
    )
    finish_plot(figure, axes, path)
