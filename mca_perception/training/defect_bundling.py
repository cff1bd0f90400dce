"""A trained defect head in a model bundle: two graphs, weights, thresholds and how they were found."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from mca_perception.backbone import Backbone
from mca_perception.datasets.armbench_defects import LABELS
from mca_perception.defects.calibration import calibrate
from mca_perception.defects.model import DefectHead
from mca_perception.defects.recipe import DefectsRecipe
from mca_perception.defects.task import DefectTask
from mca_perception.deploy.bundle import ModelBundle, write_bundle
from mca_perception.deploy.export import export_graph, largest_difference
from mca_perception.errors import RecipeError
from mca_perception.training.bundling import (
    BACKBONE_PART,
    check_same_weights,
    half_weights,
    round_to_half,
    run_facts,
    training_facts,
)
from mca_perception.training.checkpoints import DEFECT_WEIGHTS
from mca_perception.training.graphs import MAX_BATCH, TOLERANCE
from mca_perception.training.loop import validate
from mca_perception.training.run import load_run

__all__ = ["add_defects"]

MAX_VIEWS = 64


def add_defects(bundle: ModelBundle, run: Path, directory: Path) -> ModelBundle:
    """Write a bundle with the defect head of a run, calibrated on the sessions that the run held out.

    Thresholds are found for those rates of the recipe for which enough nominal picks are held out.

    Args:
        bundle: where everything else comes from; may lie in ``directory``. A defect head that it has is replaced.
        run: finished run with the bundle's backbone.
        directory: bundle folder to write, replaced as a whole.

    Raises:
        RecipeError: the run is not finished, trained no defect head or another backbone, makes other crops than the
            bundle's identification, or a graph does not reproduce the model.
        BundleError: the bundle's weights cannot be read.
    """
    recipe, model, tasks, log = load_run(run)
    section, other = recipe.defects, bundle.manifest.identification
    if section is None:
        raise RecipeError(f"{run} trained no defect head; add a defects section to its recipe")
    made = (section.crop_size, section.margin, section.masked)
    if other is not None and made != (other.crop_size, other.margin, True):
        raise RecipeError(
            f"{run} makes other crops than {bundle.path}; set defects.crop_size to {other.crop_size}, defects.margin "
            f"to {other.margin} and defects.masked to true, so that both heads share them"
        )
    round_to_half(model)
    check_same_weights(bundle, model, run, (BACKBONE_PART,))
    model.cpu().eval()
    task = next(task for task in tasks if isinstance(task, DefectTask))
    calibration = calibrate(
        task.logits(model.backbone, torch.device("cpu"), task.calibration),
        section.fpr,
        section.confidence,
        calibrated_on=describe_held_out(section, recipe.seed, len(task.calibration)),
        required=False,
    )
    facts = {**run_facts(log), "validation": validate(model, [task], torch.device("cpu"))}
    with tempfile.TemporaryDirectory() as folder:
        graphs, differences = _export(task.head, model.backbone, section, Path(folder))
        fields = bundle.manifest.model_dump(
            mode="json", exclude_none=True, exclude={"files", "schema_version"}
        )
        fields["defects"] = {
            "crop_size": section.crop_size,
            "embedding_dim": section.hidden_dim,
            "margin": section.margin,
            "background": task.config.background,
            "masked": section.masked,
            "labels": list(LABELS),
            "parameters": sum(p.numel() for p in task.head.parameters()),
            **calibration,
            "training": training_facts(recipe, facts, differences),
        }
        fields["graphs"] = {**fields["graphs"], **graphs}
        files: dict[str, str | Path | bytes] = {file: bundle.path / file for file in bundle.manifest.files}
        files |= {entry["file"]: Path(folder) / entry["file"] for entry in graphs.values()}
        files[DEFECT_WEIGHTS] = half_weights(model, "heads.defects.")
        return write_bundle(directory, fields, files)


def describe_held_out(section: DefectsRecipe, seed: int, picks: int) -> str:
    """In words, what the thresholds of a fresh head were chosen on."""
    return (
        f"{section.data.name}/train.csv, split {section.split}, sessions kept with fraction "
        f"{section.calibration_fraction} and seed {seed}: {picks} picks"
    )


def _export(
    head: DefectHead, backbone: Backbone, section: DefectsRecipe, folder: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    batch, tokens = Dim("N", min=1, max=MAX_BATCH), Dim("tokens", min=2, max=128 * 128)
    views = Dim("views", min=1, max=MAX_VIEWS)
    present = torch.tensor([[True, True, False], [True, False, False]])
    inputs = {
        "features": torch.randn(2, (section.crop_size // backbone.patch_size) ** 2 + 1, backbone.embed_dim)
    }
    sides: dict[str, dict[int, Any]] = {"features": {0: batch, 1: tokens}}
    if section.detail_dim:  # patches have places then: one crop size
        inputs["images"] = torch.rand(2, 3, section.crop_size, section.crop_size) * 2 - 1
        sides = {"features": {0: batch}, "images": {0: batch}}
    jobs: dict[str, tuple[nn.Module, dict[str, Tensor], list[str], dict[str, dict[int, Any]]]] = {
        "defects": (
            head,
            inputs,
            ["logits", "evidence"],
            sides,
        ),
        "defect_views": (
            head.views,
            {"evidence": torch.randn(2, 3, section.hidden_dim), "present": present},
            ["logits"],
            {"evidence": {0: batch, 1: views}, "present": {0: batch, 1: views}},
        ),
    }
    graphs, differences = {}, {}
    for name, (module, example, outputs, dynamic) in jobs.items():
        path = folder / f"{name}.onnx"
        graphs[name] = export_graph(module.eval(), example, outputs, path, dynamic_shapes=dynamic)
        differences[name] = largest_difference(module, example, outputs, path)
        if differences[name] > TOLERANCE:
            raise RecipeError(
                f"graph {name} differs from the model by {differences[name]:.2g} (limit {TOLERANCE}); "
                "nothing was written"
            )
    return graphs, differences
