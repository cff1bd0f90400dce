"""Turn trained weights into a model bundle: graphs, weights, manifest and model card."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import Dim

from mca_perception.backbone import Backbone
from mca_perception.backbone.adapters import plain_key
from mca_perception.deploy.bundle import ModelBundle, write_bundle
from mca_perception.deploy.export import export_graph, largest_difference
from mca_perception.errors import RecipeError
from mca_perception.identification.task import IdentificationModule
from mca_perception.training.loop import validate
from mca_perception.training.model import PerceptionModel
from mca_perception.training.recipe import Recipe, load_recipe
from mca_perception.training.run import RECIPE, load_run, read_log

# Exported graphs must reproduce the trained model to this, on a random input.
TOLERANCE = 1e-3
MAX_BATCH = 256
DEFAULT_THRESHOLD = 0.4
# Heads that no deployed model has a use for.
TRAINING_ONLY = "heads.pretraining."


class _Features(nn.Module):
    """A backbone as the graph sees it: images in, token states out."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)["encoder_out"]


class _Predict(nn.Module):
    """A segmentation head as the graph sees it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.head.predict(features, images)  # type: ignore[operator]


def bundle_run(run: Path, directory: Path, *, version: str) -> ModelBundle:
    """Export a finished training run; the score threshold is chosen on the recipe's validation split.

    Raises:
        RecipeError: the run is not finished, its backbone reads no images, or a graph does not reproduce the model.
    """
    recipe, model, tasks, log = load_run(run)
    if "vision" not in model.backbone.modalities:
        raise RecipeError(f"{run} trained a backbone without vision: a bundle's graphs start from images")
    first_stage = load_recipe(run / RECIPE).init_from
    round_to_half(model)
    validation = validate(model, tasks, torch.device("cpu"))
    facts = {**_facts(log), "validation": validation}
    if first_stage is not None:
        facts = {"first_stage": _facts(read_log(first_stage)), **facts}
    threshold = validation.get("segmentation/score_threshold", DEFAULT_THRESHOLD)
    calibrated_on = "defaults"
    if recipe.segmentation is not None:
        section = recipe.segmentation
        calibrated_on = (
            f"{section.subset}/{section.validation_split} of the training data, best F1 at mask IoU 0.5"
        )
    return write_model_bundle(
        recipe,
        model,
        directory,
        training=facts,
        version=version,
        score_threshold=threshold,
        calibrated_on=calibrated_on,
    )


def _facts(log: list[dict[str, Any]]) -> dict[str, Any]:
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
        graphs, differences = _export_graphs(recipe, model, Path(folder))
        files: dict[str, str | Path | bytes] = {
            entry["file"]: Path(folder) / entry["file"] for entry in graphs.values()
        }
        files["weights.safetensors"] = save(
            {
                plain_key(name): tensor.half().contiguous()
                for name, tensor in model.state_dict().items()
                if not name.startswith(TRAINING_ONLY)
            }
        )
        fields = _manifest_fields(recipe, model, version, score_threshold, calibrated_on)
        fields["graphs"] = graphs
        fields["training"] = {
            "recipe": _portable(recipe.model_dump(exclude_none=True)),
            "torch": torch.__version__,
            "machine": platform.machine(),
            **training,
            "export_difference": differences,
        }
        return write_bundle(directory, fields, files)


def _export_graphs(
    recipe: Recipe, model: PerceptionModel, folder: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    batch = Dim("N", min=1, max=MAX_BATCH)
    patch = model.backbone.patch_size
    height, width = (
        recipe.segmentation.input_size if recipe.segmentation else (2 * (recipe.backbone.img_size,))
    )
    images = torch.rand(2, 3, height, width) * 2 - 1
    sides = {2: patch * Dim("rows", min=2, max=128), 3: patch * Dim("columns", min=2, max=128)}
    jobs: dict[str, tuple[nn.Module, dict[str, Tensor], list[str], dict[str, Any]]] = {
        "backbone": (
            _Features(model.backbone),
            {"images": images},
            ["features"],
            {"images": {0: batch, **sides}},
        )
    }
    with torch.inference_mode():
        features = model.backbone(images)["encoder_out"].clone()
    if recipe.segmentation is not None:
        jobs["segmentation"] = (
            _Predict(model.heads["segmentation"]),
            {"features": features, "images": images},
            ["scores", "labels", "mask_logits"],
            {"features": {0: batch}, "images": {0: batch}},
        )
    if recipe.identification is not None:
        jobs["identification"] = (
            _embedding_head(model),
            {"features": features},
            ["embeddings"],
            {"features": {0: batch, 1: Dim("tokens", min=2, max=128 * 128)}},
        )
    graphs, differences = {}, {}
    for name, (module, inputs, outputs, dynamic) in jobs.items():
        path = folder / f"{name}.onnx"
        graphs[name] = export_graph(module.eval(), inputs, outputs, path, dynamic_shapes=dynamic)
        differences[name] = largest_difference(module, inputs, outputs, path)
        if differences[name] > TOLERANCE:
            raise RecipeError(
                f"graph {name} differs from the model by {differences[name]:.2g} (limit {TOLERANCE}); "
                "nothing was written"
            )
    return graphs, differences


def _portable(value: Any) -> Any:
    """A recipe for the manifest: folders by their own name, not by where they lay on the training machine."""
    if isinstance(value, dict):
        return {name: _portable(entry) for name, entry in value.items()}
    return value.name if isinstance(value, Path) else value


def _embedding_head(model: PerceptionModel) -> nn.Module:
    """The identification head without its training loss."""
    module = model.heads["identification"]
    assert isinstance(module, IdentificationModule)
    return module.head


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
    if (segmentation := recipe.segmentation) is not None:
        fields["segmentation"] = {
            "input_size": list(segmentation.input_size),
            "labels": list(segmentation.labels),
            "score_threshold": score_threshold,
            "nms_iou": 0.5,
            "mask_threshold": 0.5,
            "max_objects": segmentation.max_objects,
            "calibrated_on": calibrated_on,
            "parameters": sum(p.numel() for p in model.heads["segmentation"].parameters()),
        }
    if (identification := recipe.identification) is not None:
        fields["identification"] = {
            "crop_size": identification.crop_size,
            "embedding_dim": identification.embedding_dim,
            "margin": identification.margin,
            "background": 127,
            "parameters": sum(p.numel() for p in _embedding_head(model).parameters()),
        }
    return fields
