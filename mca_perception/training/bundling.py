"""Turn trained weights into a model bundle: graphs, weights, manifest and model card."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mca_perception.backbone.adapters import plain_key
from mca_perception.classification.recipe import ClassificationRecipe
from mca_perception.deploy.bundle import ModelBundle, write_bundle
from mca_perception.deploy.manifest import graph_of_head
from mca_perception.errors import BundleError, RecipeError
from mca_perception.identification.crops import BACKGROUND
from mca_perception.identification.losses import trained_temperature
from mca_perception.identification.recipe import IdentificationRecipe
from mca_perception.training.checkpoints import WEIGHTS
from mca_perception.training.graphs import export_fusion, export_graphs, identification_module
from mca_perception.training.loop import LOG, validate
from mca_perception.training.model import PerceptionModel
from mca_perception.training.recipe import Recipe, load_recipe
from mca_perception.training.run import RECIPE, load_run, read_log
from mca_perception.training.task import Task

DEFAULT_THRESHOLD = 0.4
# Parts that no deployed model has a use for.
TRAINING_ONLY = ("heads.pretraining.", "heads.classification.", "heads.identification.loss.classifier.")
BACKBONE_PART = "backbone."
EMBEDDING_PART = "heads.identification.head."
FUSION_PART = "heads.identification.fusion."


def bundle_run(run: Path, directory: Path, *, version: str) -> ModelBundle:
    """Export a finished training run; the score threshold is chosen on the recipe's validation split.

    Raises:
        RecipeError: the run is not finished, its backbone reads no images, or a graph does not reproduce the model.
    """
    recipe, model, tasks, log = load_run(run)
    if "vision" not in model.backbone.modalities:
        raise RecipeError(f"{run} trained a backbone without vision: a bundle's graphs start from images")
    facts, threshold, calibrated_on = _calibrate(run, recipe, model, tasks, log)
    return write_model_bundle(
        recipe,
        model,
        directory,
        training=facts,
        version=version,
        score_threshold=threshold,
        calibrated_on=calibrated_on,
    )


def add_head(bundle: ModelBundle, run: Path, directory: Path) -> ModelBundle:
    """Write a bundle with the segmentation head of another run beside its own, on the one backbone.

    A head of that name that was added before is replaced; the bundle's default head stays the default.

    Args:
        bundle: where everything else comes from; may lie in ``directory``.
        run: finished run whose backbone was frozen at the bundle's.
        directory: bundle folder to write, replaced as a whole.

    Raises:
        BundleError: the bundle does not segment, or its weights cannot be read.
        RecipeError: the run is not finished, trains no other segmentation head or another backbone, or its graph does
            not reproduce the model.
    """
    default = bundle.segmentation_head()
    recipe, model, tasks, log = load_run(run)
    if recipe.segmentation is None or recipe.segmentation.head == default.head:
        raise RecipeError(
            f"{run} trained no other segmentation head than the {default.head} head that {bundle.path} has; "
            "choose a run of another head"
        )
    round_to_half(model)
    check_same_weights(bundle, model, run, (BACKBONE_PART,))
    facts, threshold, calibrated_on = _calibrate(run, recipe, model, tasks, log)
    model.cpu().eval()
    name = recipe.segmentation.head
    only_head = recipe.model_copy(update={"identification": None})
    with tempfile.TemporaryDirectory() as folder:
        graphs, differences = export_graphs(only_head, model, Path(folder), heads_only=True)
        spec = {
            **_segmentation_fields(recipe, model, threshold, calibrated_on),
            "training": training_facts(recipe, facts, differences),
        }
        fields = bundle.manifest.model_dump(
            mode="json", exclude_none=True, exclude={"files", "schema_version"}
        )
        others = [entry for entry in fields["further_heads"] if entry["head"] != name]
        fields["further_heads"] = [*others, spec]
        fields["graphs"] = {**fields["graphs"], **graphs}
        graph = graphs[graph_of_head(name)]["file"]
        files: dict[str, str | Path | bytes] = {file: bundle.path / file for file in bundle.manifest.files}
        files[graph] = Path(folder) / graph
        files[f"{name}.safetensors"] = half_weights(model, "heads.segmentation.")
        return write_bundle(directory, fields, files)


def add_fusion(bundle: ModelBundle, run: Path, directory: Path) -> ModelBundle:
    """Write a bundle with the network of another run that joins the views of a pick.

    Args:
        bundle: where everything else comes from; may lie in ``directory``. A fusion that it has is replaced.
        run: finished run whose backbone and embedding head were frozen at the bundle's.
        directory: bundle folder to write, replaced as a whole.

    Raises:
        BundleError: the bundle's weights cannot be read.
        RecipeError: the run is not finished, trained no fusion or other embeddings than the bundle's, or the graph
            does not reproduce the model.
    """
    recipe, model, tasks, log = load_run(run)
    section, settings = recipe.identification, bundle.manifest.identification
    if section is None or section.views == 1:
        raise RecipeError(f"{run} trained no fusion of views; set identification.views to 2 or more")
    if settings is None or (section.crop_size, section.margin) != (settings.crop_size, settings.margin):
        raise RecipeError(
            f"{run} makes other crops than {bundle.path}; set identification.crop_size and margin to its"
        )
    round_to_half(model)
    check_same_weights(bundle, model, run, (BACKBONE_PART, EMBEDDING_PART))
    facts, _, _ = _calibrate(run, recipe, model, tasks, log)
    model.cpu().eval()
    with tempfile.TemporaryDirectory() as folder:
        graph, difference = export_fusion(model, Path(folder))
        fields = bundle.manifest.model_dump(
            mode="json", exclude_none=True, exclude={"files", "schema_version"}
        )
        fields["identification"] |= {
            "views": section.views,
            "fusion_training": training_facts(recipe, facts, {"fusion": difference}),
            # Chosen for other similarities than the network's.
            "calibration": [c for c in fields["identification"].get("calibration", []) if c["views"] == 1],
        }
        fields["graphs"] = {**fields["graphs"], "fusion": graph}
        files: dict[str, str | Path | bytes] = {file: bundle.path / file for file in bundle.manifest.files}
        files[graph["file"]] = Path(folder) / graph["file"]
        files["fusion.safetensors"] = half_weights(model, FUSION_PART)
        return write_bundle(directory, fields, files)


def check_same_weights(
    bundle: ModelBundle, model: PerceptionModel, run: Path, parts: tuple[str, ...]
) -> None:
    """Raise RecipeError unless the parts of a model, rounded to float16, are those of a bundle."""
    path = bundle.path / WEIGHTS
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read ({error}); export the bundle again") from error
    expected = {name: value for name, value in stored.items() if name.startswith(parts)}
    found = {n: value.half() for n, value in model.state_dict().items() if n.startswith(parts)}
    different = [
        name
        for name in sorted(expected.keys() | found.keys())
        if name not in expected or name not in found or not torch.equal(expected[name], found[name])
    ]
    if different:
        raise RecipeError(
            f"{run} has another backbone or embedding than {bundle.path}: {len(different)} of {len(expected | found)} "
            f"tensors differ, such as {different[0]}; train with backbone.freeze=true and init_from set to the run "
            "that the bundle was exported from, or to the bundle"
        )


def _calibrate(
    run: Path, recipe: Recipe, model: PerceptionModel, tasks: list[Task], log: list[dict[str, Any]]
) -> tuple[dict[str, Any], float, str]:
    """Facts of the run with its validation figures, the score threshold and the data that it was chosen on."""
    first_stage = load_recipe(run / RECIPE).init_from
    round_to_half(model)
    validation = validate(model, tasks, torch.device("cpu"))
    facts = {**run_facts(log), "validation": validation}
    if first_stage is not None and (first_stage / LOG).is_file():
        facts = {"first_stage": run_facts(read_log(first_stage)), **facts}
    threshold = validation.get("segmentation/score_threshold", DEFAULT_THRESHOLD)
    if recipe.segmentation is None:
        return facts, threshold, "defaults"
    section = recipe.segmentation
    split = f"{section.subset}/{section.validation_split}"
    return facts, threshold, f"{split} of the training data, best F1 at mask IoU 0.5"


def run_facts(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Steps, minutes and device of a run, from its log."""
    final = log[-1]
    return {"steps": final["step"], "minutes": final["minutes"], "device": final.get("device", "unknown")}


def round_to_half(model: nn.Module) -> None:
    """Round every weight to float16 in place: the half-size weights file and the graphs then hold the same numbers."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())


def write_model_bundle(
    recipe: Recipe,
    model: PerceptionModel,
    directory: Path,
    *,
    training: Mapping[str, Any],
    version: str,
    score_threshold: float,
    calibrated_on: str,
) -> ModelBundle:
    """Export ``model`` and write the bundle.

    Args:
        recipe: what the model was trained by; decides input sizes and labels.
        model: trained weights; rounded to float16 in place.
        directory: bundle folder, replaced as a whole.
        training: facts for the manifest and the model card (steps, minutes, device, validation metrics).
        version: version of the bundle.
        score_threshold: operating point of the segmentation.
        calibrated_on: data on which that threshold was chosen.

    Raises:
        RecipeError: a graph does not reproduce the model within ``TOLERANCE``.
    """
    model.cpu().eval()
    round_to_half(model)
    with tempfile.TemporaryDirectory() as folder:
        graphs, differences = export_graphs(recipe, model, Path(folder))
        files: dict[str, str | Path | bytes] = {
            entry["file"]: Path(folder) / entry["file"] for entry in graphs.values()
        }
        files[WEIGHTS] = half_weights(model)
        fields = _manifest_fields(recipe, model, version, score_threshold, calibrated_on)
        fields["graphs"] = graphs
        fields["training"] = training_facts(recipe, training, differences)
        return write_bundle(directory, fields, files)


def half_weights(model: nn.Module, part: str = "") -> bytes:
    """Weights whose names start with ``part`` as a float16 safetensors file, without what only training needs."""
    kept: dict[str, Tensor] = {
        plain_key(name): tensor.half().contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith(part) and not name.startswith(TRAINING_ONLY)
    }
    return save(kept)


def training_facts(
    recipe: Recipe, training: Mapping[str, Any], differences: Mapping[str, float]
) -> dict[str, Any]:
    """What a manifest tells about a training run."""
    return {
        "recipe": _portable(recipe.model_dump(exclude_none=True)),
        "torch": torch.__version__,
        "machine": platform.machine(),
        **training,
        "export_difference": dict(differences),
    }


def _portable(value: Any) -> Any:
    """A recipe for the manifest: folders by their own name, not by where they lay on the training machine."""
    if isinstance(value, dict):
        return {name: _portable(entry) for name, entry in value.items()}
    return value.name if isinstance(value, Path) else value


def _manifest_fields(
    recipe: Recipe, model: PerceptionModel, version: str, score_threshold: float, calibrated_on: str
) -> dict[str, Any]:
    backbone = model.backbone
    fields: dict[str, Any] = {
        "name": recipe.name,
        "version": version,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "licence": "Apache-2.0",
        "backbone": {
            "name": recipe.backbone.name,
            "img_size": backbone.img_size,
            "patch_size": backbone.patch_size,
            "embed_dim": backbone.embed_dim,
            "parameters": sum(parameter.numel() for parameter in model.backbone.parameters()),
        },
        "preprocessing": {
            "mean": list(backbone.normalisation.mean),
            "std": list(backbone.normalisation.std),
            "channel_order": "RGB",
        },
    }
    if recipe.adapter is not None:
        fields["backbone"]["adapter"] = recipe.adapter.model_dump(mode="json")
    if recipe.segmentation is not None:
        fields["segmentation"] = _segmentation_fields(recipe, model, score_threshold, calibrated_on)
    if recipe.identification is not None:
        fields["identification"] = _identification_fields(recipe.identification, model)
    if recipe.classification is not None:
        fields["identification"] = _representation_fields(recipe.classification, backbone.embed_dim)
    return fields


def _representation_fields(section: ClassificationRecipe, embed_dim: int) -> dict[str, Any]:
    """The encoder's output as the bundle's embedding: projection and classifier are for training."""
    return {
        "crop_size": section.image_size,
        "embedding_dim": embed_dim,
        "margin": 0.0,
        "background": BACKGROUND,
        "temperature": section.method.loss_temperature,
        "parameters": 0,
    }


def _identification_fields(section: IdentificationRecipe, model: PerceptionModel) -> dict[str, Any]:
    module = identification_module(model)
    fields: dict[str, Any] = {
        "crop_size": section.crop_size,
        "embedding_dim": section.embedding_dim,
        "margin": section.margin,
        "background": BACKGROUND,
        "temperature": trained_temperature(module.loss),
        "parameters": sum(p.numel() for name, p in module.named_parameters() if not name.startswith("loss.")),
    }
    if module.fusion is not None:
        fields["views"] = section.views
    if module.reference_fusion is not None:
        fields["reference_fusion"] = section.reference_fusion
    return fields


def _segmentation_fields(
    recipe: Recipe, model: PerceptionModel, score_threshold: float, calibrated_on: str
) -> dict[str, Any]:
    segmentation = recipe.segmentation
    assert segmentation is not None
    return {
        "head": segmentation.head,
        "input_size": list(segmentation.input_size),
        "labels": list(segmentation.labels),
        "score_threshold": score_threshold,
        "nms_iou": 0.5,
        "mask_threshold": 0.5,
        "max_objects": segmentation.max_objects,
        "calibrated_on": calibrated_on,
        "parameters": sum(p.numel() for p in model.heads["segmentation"].parameters()),
    }
