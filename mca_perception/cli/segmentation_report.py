"""What `mca eval armbench-segmentation` writes beside its metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mca_perception.cli import plots, reports
from mca_perception.cli.contact_sheets import segmentation_sheet
from mca_perception.pipeline.evaluation import SegmentationRun
from mca_perception.segmentation.average_precision import MAX_DETECTIONS

__all__ = ["segmentation_report", "write_subset"]

BY_COUNT = "average_precision_by_count.png"
PRECISION_RECALL = "precision_recall.png"
SHEET = "contact_sheet.jpg"
WORST = 24
_MASKS = ("mask_map50", "mask_map75", "mask_map")
_BOXES = ("box_map50", "box_map75", "box_map")


def write_subset(run: SegmentationRun, folder: Path) -> None:
    """Write the detections, the plot of precision over recall and the contact sheet of one subset.

    ``ground_truth.json`` is added when the annotation file was not used as it is, so that the figures can be
    repeated by hand.
    """
    reports.write_json_array(folder / "detections.json", run.detections)
    if run.metrics["skipped"] or run.metrics["corrected"]:
        reports.write_json(folder / "ground_truth.json", run.truth)
    if plots.can_plot():
        plots.plot_precision_recall(run.precision_recall, folder / PRECISION_RECALL)
    segmentation_sheet(run, folder / SHEET, worst=WORST)


def segmentation_report(results: Mapping[str, dict[str, Any]], out: Path) -> str:
    """Write the plot over the number of objects and return the report of all subsets.

    Args:
        results: content of ``metrics.json`` by subset.
        out: folder of the report.
    """
    several = len(results) > 1
    first = next(iter(results.values()))
    heading = {**first["data"], "folder": ", ".join(m["data"]["folder"] for m in results.values())}
    lines = [reports.opening("Segmentation", {**first, "data": heading}), _note(first), _overview(results)]
    if plots.can_plot():
        plots.plot_by_count({name: m["by_count"] for name, m in results.items()}, out / BY_COUNT)
        lines.append(f"![average precision by objects per image]({BY_COUNT})\n")
    else:
        lines.append("Without plots: matplotlib is not installed (`pip install 'mca_perception[train]'`).\n")
    for name, metrics in results.items():
        lines += _section(name, metrics, Path(name) if several else Path())
    return "\n".join([*lines, "## Machine\n", reports.machine(first)])


def _note(metrics: dict[str, Any]) -> str:
    return (
        "Average precision by pycocotools from detections.json: score at least "
        f"{metrics['score_floor']}, at most {MAX_DETECTIONS} per image and class, masks may overlap. "
        f"Intervals hold 95 % of {metrics['bootstrap']['resamples']} bootstrap resamples of the images "
        f"(seed {metrics['bootstrap']['seed']}). The model is used as it is: nothing is adapted to these sets.\n"
    )


def _data(metrics: dict[str, Any]) -> str:
    """Which data it is and what of it the model can find."""
    data, annotated, found = metrics["data"], metrics["categories_in_data"], metrics["categories_of_model"]
    limit = "" if data["limit"] is None else f" (the first {data['limit']})"
    text = (
        f"{metrics['images']} images{limit}, {metrics['annotations']} annotations of {', '.join(annotated)}; "
        f"{data['file']} with SHA-256 `{data['sha256'][:16]}`"
    )
    if data["synthesised"]:
        text += f", synthesised with `{json.dumps(data['synthesised'])}`"
    text += f". The model finds {', '.join(found)} with its {metrics['model']['head']} head. "
    if missing := [name for name in annotated if name not in found]:
        text += f"It does not know {', '.join(missing)}, which counts as 0 in 'all classes'. "
    if unscored := [name for name in found if name not in annotated]:
        text += f"The data does not annotate {', '.join(unscored)}: such detections are left out. "
    return text.rstrip() + "\n"


def _overview(results: Mapping[str, dict[str, Any]]) -> str:
    rows = []
    for name, metrics in results.items():
        for classes, part in (("all classes", metrics), ("Object only", metrics["object_only"])):
            if part:
                figures = [part[figure] for figure in (*_MASKS, *_BOXES)]
                interval = _interval(part["mask_map50_interval95"])
                rows.append((name, classes, metrics["images"], figures[0], interval, *figures[1:]))
    header = ("subset", "classes", "images", "mask_map50", "95 %", *_MASKS[1:], *_BOXES)
    return reports.table(header, rows)


def _interval(interval: list[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _section(name: str, metrics: dict[str, Any], folder: Path) -> list[str]:
    point = metrics["operating_point"]
    lines = [
        f"## {name}\n",
        _data(metrics),
        "### By objects per image\n",
        _parts("objects", [(entry["objects"], entry) for entry in metrics["by_count"]]),
        "### By size (share of the image: small below 1/64, large above 1/16)\n",
        _parts("size", list(metrics["by_size"].items())),
        "### As published by the nodes\n",
        f"Classes {', '.join(point['categories'])}; every pixel belongs to one object; score threshold "
        f"{point['score_threshold']}, mask IoU 0.5.\n",
        reports.table(
            ("precision", "recall", "F1", "mean IoU", "best F1", "at threshold"),
            [[point[k] for k in ("precision", "recall", "f1", "mean_iou", "best_f1", "best_f1_threshold")]],
        ),
    ]
    if plots.can_plot():
        lines.append(f"![precision over recall]({folder / PRECISION_RECALL})\n")
    lines += [
        "### Difficulty of the set\n",
        reports.table(("figure", "value"), metrics["difficulty"].items()),
        "### Left out, or used although not plain polygons inside the image\n",
        reports.left_out(metrics),
        "### Latency (ms)\n",
        reports.latency(metrics),
        f"### The worst {WORST} images\n",
        "Truth left, model right, as published by the nodes. Ranked by panoptic quality: the sum of the mask "
        "IoUs of what was found, over found + (missed + false) / 2.\n",
        f"![worst images]({folder / SHEET})\n",
    ]
    return lines


def _parts(kind: str, parts: list[tuple[str, dict[str, Any]]]) -> str:
    """Table of parts of the data: all classes, then objects alone."""
    columns = ("annotations", *_MASKS)
    header = [kind, *(["images"] if "images" in parts[0][1] else []), *columns]
    alone = [f"Object {column}" for column in columns] if parts[0][1]["object_only"] else []
    rows = []
    for name, part in parts:
        row = [name, *([part["images"]] if "images" in part else []), *(part[c] for c in columns)]
        rows.append([*row, *(part["object_only"][c] for c in columns if alone)])
    return reports.table([*header, *alone], rows)
