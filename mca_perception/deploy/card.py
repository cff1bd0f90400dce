"""Model card: the manifest of a bundle as a page to read, and evaluation results added to both."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mca_perception.deploy.bundle import ModelBundle, write_bundle
from mca_perception.deploy.manifest import (
    DefectsSpec,
    IdentificationSpec,
    Manifest,
    PrecisionSpec,
    SegmentationSpec,
)
from mca_perception.errors import BundleError

CARD_NAME = "README.md"
# Kept in the manifest, but not what a reader of the card looks for.
NOT_ON_THE_CARD = frozenset(
    {"created", "device", "incomplete", "model", "not_ranked", "score_floor", "versions"}
)


def attach_metrics(bundle: ModelBundle, directory: Path, metrics: Sequence[Path]) -> ModelBundle:
    """Write ``bundle`` to ``directory`` with evaluation results in its manifest and a fresh model card.

    Args:
        bundle: where the files come from; may be ``directory`` itself.
        directory: bundle folder to write.
        metrics: ``metrics.json`` files of evaluations; each needs a ``task`` or is filed under its folder's name.

    Raises:
        BundleError: a metrics file is missing or no JSON object.
    """
    results = dict(bundle.manifest.metrics)
    for path in metrics:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(
                f"metrics file {path} cannot be read as JSON ({error}); run `mca eval` again"
            ) from error
        if not isinstance(content, dict):
            raise BundleError(f"metrics file {path} must hold a JSON object; run `mca eval` again")
        task = str(content.pop("task", path.parent.name))
        task += _which_head(content.get("model"), bundle.manifest)
        results[task] = _scalars(content)
    return write_described(bundle, bundle.manifest.model_copy(update={"metrics": results}), directory)


def write_described(
    bundle: ModelBundle, manifest: Manifest, directory: str | os.PathLike[str]
) -> ModelBundle:
    """Write the files of ``bundle`` under another manifest, with the card that belongs to it."""
    fields = manifest.model_dump(mode="json", exclude_none=True, exclude={"files", "schema_version"})
    files: dict[str, Path | bytes] = {name: bundle.path / name for name in bundle.manifest.files}
    return write_bundle(directory, fields, {**files, CARD_NAME: model_card(manifest).encode()})


def model_card(manifest: Manifest) -> str:
    """Markdown page that states what the model is, how it was made, and how well it does on what."""
    backbone, training = manifest.backbone, manifest.training
    recipe: Mapping[str, Any] = training.get("recipe", {})
    segmentation = [spec for spec in (manifest.segmentation, *manifest.further_heads) if spec is not None]
    heads: list[tuple[str, SegmentationSpec | IdentificationSpec | DefectsSpec]] = [
        (f"segmentation head ({spec.head})", spec) for spec in segmentation
    ]
    if manifest.identification is not None:
        heads.append(("identification head", manifest.identification))
    if manifest.defects is not None:
        heads.append(("defect head", manifest.defects))
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        str(recipe.get("description", "")).strip(),
        "",
        f"Licence: {manifest.licence}. Created {manifest.created}.",
        "",
        "| part | parameters | input |",
        "|---|---|---|",
        f"| backbone `{backbone.name}` | {backbone.parameters:,} | multiples of {backbone.patch_size} px |",
    ]
    for name, head in heads:
        size = getattr(head, "input_size", None) or (getattr(head, "crop_size", 0),) * 2
        count = (head.model_extra or {}).get("parameters", 0)
        lines.append(f"| {name} | {count:,} | {size[1]} x {size[0]} px |")
    for spec in segmentation:
        lines += [
            "",
            f"Segmentation ({spec.head}) finds: {', '.join(spec.labels)}. Score threshold {spec.score_threshold} "
            f"(chosen on {spec.calibrated_on}).",
        ]
    if manifest.identification is not None:
        for calibration in manifest.identification.calibration:
            lines += [
                "",
                f"Products are accepted above similarity {calibration.threshold:.4f} ({calibration.gallery} gallery, "
                f"{calibration.views} view(s)): at most {calibration.false_accept:.1%} of unknown ones pass, with "
                f"confidence {calibration.confidence:.0%} (chosen on {calibration.calibrated_on}).",
            ]
    if manifest.defects is not None:
        for point in manifest.defects.points("pick"):
            lines += [
                "",
                f"Picks raise an alarm above {point.threshold:.4f}: at most {point.fpr:.1%} of nominal ones do, with "
                f"confidence {point.confidence:.0%} (chosen on {manifest.defects.calibrated_on}).",
            ]
    if manifest.precision is not None:
        lines += ["", "## Precision", "", *_precision(manifest.precision)]
    lines += ["", "## Training", "", *_table({k: v for k, v in training.items() if k != "recipe"})]
    lines += ["", "## Evaluation", ""]
    if not manifest.metrics:
        lines.append("Not evaluated yet.")
    for task, values in manifest.metrics.items():
        shown = {name: value for name, value in values.items() if name not in NOT_ON_THE_CARD}
        lines += [f"### {task}", "", *_table(shown), ""]
    lines += [
        "",
        "## Limits",
        "",
        "Figures on synthesised data say nothing about real totes."
        + (
            ""
            if manifest.precision
            else " Weights are stored as float16, in the ONNX graphs too; these compute in float32."
        ),
        "",
    ]
    return "\n".join(lines)


def _precision(precision: PrecisionSpec) -> list[str]:
    """How the graphs were converted and what that cost."""
    graphs = ", ".join(f"`{name}`" for name in precision.converted) or "none"
    lines = [f"{precision.kind}; converted from model {precision.reference}: {graphs}."]
    checks = precision.gate.get("checks", [])
    if checks:
        lines += ["", "| data | metric | before | after | samples |", "|---|---|---|---|---|"]
        lines += [
            f"| {c['data']} | {c['metric']} | {c['reference']:.4f} | {c['exported']:.4f} | {c['samples']} |"
            for c in checks
        ]
    else:
        lines += ["", "Its accuracy was not compared."]
    if precision.regression:
        lines += ["", "**It lost more than was allowed and was written on request nevertheless.**"]
    return lines


def _which_head(model: Any, manifest: Manifest) -> str:
    """Tells the figures of a further segmentation head from those of the default one."""
    head = model.get("head") if isinstance(model, Mapping) else None
    return f" ({head})" if head in {spec.head for spec in manifest.further_heads} else ""


def _table(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    rows = [] if prefix else ["| | |", "|---|---|"]
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _table(value, f"{prefix}{name} / ")
        else:
            rows.append(f"| {prefix}{name} | {value} |")
    return rows


def _scalars(content: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Numbers, strings and small tables of results; per-item lists stay in the evaluation's own folder."""
    kept: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and depth == 0:
            kept[name] = _scalars(value, depth + 1)
        elif isinstance(value, float):
            kept[name] = round(value, 4)
        elif isinstance(value, str | int):
            kept[name] = value
    return kept
