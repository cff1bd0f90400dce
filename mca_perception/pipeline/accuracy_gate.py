"""Whether a changed model is as good as the one that it was made from: task metrics of both on the same data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mca_perception.datasets.armbench_defects import read_defect_images
from mca_perception.datasets.coco import SUBSETS, CocoSplit
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.errors import DatasetError
from mca_perception.identification.index import load_identification
from mca_perception.pipeline.defect_evaluation import evaluate_defects
from mca_perception.pipeline.evaluation import evaluate_segmentation
from mca_perception.pipeline.identification_evaluation import evaluate_identification
from mca_perception.pipeline.inspection import DefectInspector
from mca_perception.pipeline.pipeline import PerceptionPipeline
from mca_perception.pipeline.references import Progress, no_progress

__all__ = ["Check", "GateResult", "GateThresholds", "run_gate"]

SPLITS = ("val", "testset", "test")


@dataclass(frozen=True)
class GateThresholds:
    """How much a metric may lose, as a fraction: 0.01 is one point.

    Attributes:
        mask_ap50: average precision of masks at IoU 0.5, of objects.
        recall_at_1: share of picks identified first.
        defect_recall: recall of defective picks at a false-positive rate of 1 %.
    """

    mask_ap50: float = 0.01
    recall_at_1: float = 0.01
    defect_recall: float = 0.01


@dataclass(frozen=True)
class Check:
    """One metric of both models on one data set.

    Attributes:
        data: folder and split.
        metric: name.
        reference: value of the model before the change.
        exported: value after it.
        limit: largest loss that passes.
        samples: images or picks.
    """

    data: str
    metric: str
    reference: float
    exported: float
    limit: float
    samples: int

    @property
    def passed(self) -> bool:
        """Whether the loss is within the limit; a metric that is not a number fails."""
        return self.reference - self.exported <= self.limit


@dataclass(frozen=True)
class GateResult:
    """Outcome of the gate: one check per data set."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_manifest(self) -> dict[str, Any]:
        """For the manifest."""
        checks = [{**asdict(check), "passed": check.passed} for check in self.checks]
        return {"passed": self.passed, "checks": checks}

    def __str__(self) -> str:
        return "\n".join(
            f"{check.data}: {check.metric} {check.reference:.4f} -> {check.exported:.4f} "
            f"({check.samples} samples, at most -{check.limit}): {'passed' if check.passed else 'FAILED'}"
            for check in self.checks
        )


def run_gate(
    reference: ModelBundle,
    exported: ModelBundle,
    evaluation: Sequence[Path],
    *,
    thresholds: GateThresholds | None = None,
    limit: int | None = None,
    session: str = "onnxruntime-cpu",
    progress: Progress = no_progress,
) -> GateResult:
    """Evaluate two models on the same data.

    Args:
        reference: the model before the change, run by ONNX Runtime on the CPU.
        exported: the model after it.
        evaluation: folders in ARMBench's layout, of totes, of picks or of defect images; the split ``val`` where
            there is one, else ``test`` (for picks ``testset``).
        thresholds: largest losses.
        limit: look only at so many images or picks of each.
        session: back end of the exported model.
        progress: shows how far it is.

    Raises:
        DatasetError: a folder is of neither kind, or cannot be read.
        BundleError: a model cannot do the task of the data, or the back end cannot run it.
    """
    allowed = thresholds or GateThresholds()
    where = ((reference.path, "onnxruntime-cpu"), (exported.path, session))
    # Opened for the first folder that needs them: a model that only inspects picks makes no pipeline.
    pipelines = cache(lambda: tuple(PerceptionPipeline.from_bundle(path, session=s) for path, s in where))
    inspectors = cache(lambda: tuple(DefectInspector.from_bundle(path, session=s) for path, s in where))
    checks = []
    for folder in evaluation:
        if (folder / "Picks").is_dir():
            checks.append(_picks(pipelines(), folder, allowed.recall_at_1, limit, progress))
        elif (folder / "train.csv").is_file():
            checks.append(_defects(inspectors(), folder, allowed.defect_recall, limit, progress))
        else:
            checks.append(_totes(pipelines(), folder, allowed.mask_ap50, limit, progress))
    return GateResult(tuple(checks))


Pipelines = tuple[PerceptionPipeline, ...]
"""Of the model before the change, and after it."""


def _totes(models: Pipelines, folder: Path, allowed: float, limit: int | None, progress: Progress) -> Check:
    subset = next((name for name in SUBSETS if (folder / name).is_dir()), folder.name)
    root = folder / subset if (folder / subset).is_dir() else folder
    split = next((name for name in SPLITS if (root / f"{name}.json").is_file()), None)
    if split is None:
        raise DatasetError(
            f"{folder} holds neither picks (Picks/), totes (val.json or test.json) nor defect images (train.csv); give "
            "a folder in ARMBench's layout to evaluate on"
        )
    values = []
    for model in models:
        records = CocoSplit.open(folder, subset=subset, split=split, limit=limit)
        metrics = evaluate_segmentation(model, records, progress=progress).metrics
        values.append(float((metrics["object_only"] or metrics)["mask_map50"]))
    before, after = values
    return Check(f"{folder.name}/{subset}/{split}", "mask AP50", before, after, allowed, metrics["images"])


def _picks(models: Pipelines, folder: Path, allowed: float, limit: int | None, progress: Progress) -> Check:
    values = []
    for model in models:
        index = load_identification(folder, split="testset", limit=limit)
        metrics = evaluate_identification(model, index, progress=progress).metrics
        values.append(float(metrics["recall@1"]))
    before, after = values
    return Check(f"{folder.name}/testset", "Recall@1", before, after, allowed, metrics["queries"])


def _defects(
    models: tuple[DefectInspector, ...], folder: Path, allowed: float, limit: int | None, progress: Progress
) -> Check:
    index, values = read_defect_images(folder, limit=limit), []
    for model in models:
        pick = evaluate_defects(model, index, progress=progress).metrics["official"]["pick"]
        recall = pick["recall@fpr0.01"]["combined"]
        values.append(math.nan if recall is None else float(recall))
    before, after = values
    return Check(f"{folder.name}/test", "defect recall at FPR 1 %", before, after, allowed, pick["count"])
