"""What `mca eval armbench-defect-videos` writes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import typer

from mca_perception.cli import reports
from mca_perception.datasets.armbench_defect_videos import BITS, ClipIndex, read_defect_clips

__all__ = ["evaluate"]

RATES = (0.05, 0.1)
CONFIDENCE = 0.95
# Misses among the clips that pass before their end.
MISS_RATE = 0.05


def evaluate(data: Path, run: Path, out: Path, *, limit: int | None) -> None:
    """Evaluate a run on the test list and write ``metrics.json`` and ``report.md`` to ``out``.

    Raises:
        RecipeError: the run is not finished, or trained no clips.
        DatasetError: the data cannot be read, or lists no test clip.
    """
    import torch

    from mca_perception.defects.clips.metrics import bit_figures, bit_thresholds
    from mca_perception.defects.clips.task import ClipTask, score_clips
    from mca_perception.errors import DatasetError, RecipeError
    from mca_perception.training.run import load_run

    recipe, model, tasks, _ = load_run(run)
    task = next((task for task in tasks if isinstance(task, ClipTask)), None)
    if task is None:
        raise RecipeError(f"{run} trained no clips; give a run of a recipe with a clips section")
    index = read_defect_clips(data, limit=limit)
    if not index.test:
        raise DatasetError(f"{data} lists no usable test clip; check test.csv")
    model.eval()
    device = torch.device("cpu")
    reports.new_folder(out)
    with reports.progress_bar() as progress:
        held_out, scores = (
            score_clips(task, model.backbone, device, clips, progress=partial(progress, description=title))
            for clips, title in ((task.validation, "held-out clips"), (index.test, "test clips"))
        )
    thresholds = bit_thresholds(held_out)
    metrics = {
        "recipe": recipe.name,
        "clips": len(index.test),
        "held_out_clips": len(task.validation),
        "bit_thresholds": dict(zip(BITS, thresholds, strict=True)),
        **bit_figures(scores, thresholds),
        "operating_points": operating_points(held_out, scores),
        "data": _data_facts(data, index, limit),
        **reports.environment(),
    }
    reports.write_json(out / "metrics.json", metrics)
    reports.write_text(out / "report.md", report(metrics))
    typer.echo(
        f"accuracy {metrics['accuracy']:.4f}  exact_match {metrics['exact_match']:.4f}  "
        f"{len(index.test)} clips -> {out / 'report.md'}"
    )


def operating_points(held_out: Any, scores: Any) -> list[dict[str, Any]]:
    """Running answers on the test clips, with thresholds from held-out nominal clips where there are enough."""
    from mca_perception.defects.clips.metrics import nominal_peaks, stream_figures
    from mca_perception.defects.operating_point import choose_clearance, choose_threshold, negatives_needed

    peaks = nominal_peaks(held_out)
    defective = [
        values.max() for values, bits in zip(held_out.any_defect, held_out.bits, strict=True) if bits.any()
    ]
    clear = choose_clearance(defective, MISS_RATE, CONFIDENCE) if defective else None
    points = []
    for rate in RATES:
        if len(peaks) < negatives_needed(rate, CONFIDENCE):
            continue
        threshold = choose_threshold(peaks, rate, CONFIDENCE, name="clips").threshold
        found = stream_figures(scores, threshold, clear_below=clear)
        points.append({"promised_fpr": rate, "confidence": CONFIDENCE, "held_out": len(peaks), **found})
    return points or [{"promised_fpr": None, "held_out": len(peaks), **stream_figures(scores, 0.5)}]


def report(metrics: dict[str, Any]) -> str:
    """Markdown page of an evaluation."""
    bits = [(name, metrics[f"{name}_accuracy"], metrics[f"{name}_auc"]) for name in BITS]
    bits.append(("any defect", None, metrics["any_defect_auc"]))
    points = [
        (
            point["promised_fpr"],
            point["threshold"],
            point["recall"],
            point["false_positive_rate"],
            point["frames_to_alarm_median"],
            point["frames_after_visible_median"],
            point["frames_looked_at_of_nominal"],
        )
        for point in metrics["operating_points"]
    ]
    return "\n".join(
        [
            f"# Defect videos: {metrics['recipe']}\n",
            f"{metrics['clips']} clips of the test list of {metrics['data']['folder']}. Accuracy of both bits "
            f"{metrics['accuracy']:.4f}, exact match {metrics['exact_match']:.4f} (always nominal: "
            f"{metrics['nominal_share']:.4f}). Thresholds of the bits are those that were right most often on "
            f"{metrics['held_out_clips']} held-out clips.\n",
            reports.table(("bit", "accuracy", "ROC AUC"), bits),
            "Running answers: the alarm comes with the first frame whose larger bit exceeds the threshold, which was "
            "chosen on the largest scores of held-out nominal clips (no promise where there were too few).\n",
            reports.table(
                (
                    "promised FPR",
                    "threshold",
                    "recall",
                    "measured FPR",
                    "frames to the alarm (median)",
                    "after the defect shows (median)",
                    "share of frames looked at, nominal",
                ),
                points,
            ),
        ]
    )


def _data_facts(data: Path, index: ClipIndex, limit: int | None) -> dict[str, Any]:
    return {
        "folder": data.name,
        "limit": limit,
        "skipped": dict(index.skipped),
        "repaired": dict(index.incomplete),
    }
