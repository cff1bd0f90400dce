"""The ONNX graphs of a trained model, each compared with the model that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from mca_perception.backbone import Backbone
from mca_perception.classification.model import UnitEncoderOutput
from mca_perception.deploy.export import Outputs, export_graph, largest_array_difference, largest_difference
from mca_perception.deploy.manifest import graph_of_head
from mca_perception.errors import RecipeError
from mca_perception.identification.model import IdentificationModule
from mca_perception.segmentation.cascade.detector import CascadeHead
from mca_perception.segmentation.cascade.graph import (
    OUTPUTS,
    CascadeGraph,
    largest_detection_difference,
    onnx_translations,
)
from mca_perception.segmentation.comparison import largest_candidate_difference
from mca_perception.training.model import PerceptionModel
from mca_perception.training.recipe import Recipe

__all__ = [
    "Features",
    "Predict",
    "export_fusion",
    "export_graphs",
    "export_segmentation",
    "identification_module",
]

# Exported graphs must reproduce the trained model to this, on a random input.
TOLERANCE = 1e-3
MAX_BATCH = 256
MAX_REFERENCES = 1000
# Share of detections that rounding may exchange for others of the same score: many have one while a head is untrained.
TIES = 0.1


@dataclass(frozen=True)
class _Job:
    """A graph to export: the arguments of :func:`~mca_perception.deploy.export.export_graph`."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, Any]]
    translations: Mapping[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)
    measure: Callable[[Outputs, Outputs], float] = largest_array_difference


class Features(nn.Module):
    """A backbone as the graph sees it: images in, token states out."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """``[N, 3, H, W]`` normalised images to ``[N, 1 + T, D]`` tokens."""
        return self.backbone(images)["encoder_out"]


class Predict(nn.Module):
    """The edge head as the graph sees it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, labels and mask logits of the candidates."""
        return self.head.predict(features, images)  # type: ignore[operator]


def export_graphs(
    recipe: Recipe, model: PerceptionModel, folder: Path, *, heads_only: bool = False
) -> tuple[dict[str, Any], dict[str, float]]:
    """Write ``<graph>.onnx`` for the backbone and every head that a deployed model uses.

    Args:
        recipe: what the model was trained by; decides input sizes.
        model: on the CPU, in evaluation mode.
        folder: existing folder to write to.
        heads_only: leave out the backbone.

    Returns:
        The graphs' entries for the manifest and the largest difference between each graph and the model.

    Raises:
        RecipeError: a graph does not reproduce the model within ``TOLERANCE``, or ONNX cannot express a head.
    """
    batch = Dim("N", min=1, max=MAX_BATCH)
    height, width = (
        recipe.segmentation.input_size if recipe.segmentation else (2 * (recipe.backbone.img_size,))
    )
    images = torch.rand(2, 3, height, width) * 2 - 1
    with torch.inference_mode():
        features = model.backbone(images)["encoder_out"]
    features = features.clone()  # an ordinary tensor again
    jobs: dict[str, _Job] = {}
    if not heads_only:
        jobs["backbone"] = _backbone_job(model.backbone, images, batch)
    if recipe.segmentation is not None:
        head = model.heads["segmentation"]
        jobs[graph_of_head(recipe.segmentation.head)] = (
            _cascade_job(head, features, (height, width))
            if isinstance(head, CascadeHead)
            else _edge_job(head, features, images, batch)
        )
    if recipe.identification is not None:
        jobs |= _identification_jobs(identification_module(model), features, batch)
    if recipe.classification is not None:
        jobs["identification"] = _embedding_job(UnitEncoderOutput(), features, batch)
    results = {name: _export(name, job, folder) for name, job in jobs.items()}
    return {name: entry for name, (entry, _) in results.items()}, {n: d for n, (_, d) in results.items()}


def identification_module(model: PerceptionModel) -> IdentificationModule:
    """The model's identification head with everything that belongs to it."""
    module = model.heads["identification"]
    assert isinstance(module, IdentificationModule)
    return module


def export_fusion(model: PerceptionModel, folder: Path) -> tuple[dict[str, Any], float]:
    """Write ``fusion.onnx`` alone; returns its entry for the manifest and its difference from the model."""
    jobs = _identification_jobs(identification_module(model), None, Dim("N", min=1, max=MAX_BATCH))
    return _export("fusion", jobs["fusion"], folder)


def export_segmentation(
    backbone: nn.Module, predict: Predict, images: Tensor, folder: Path
) -> tuple[dict[str, Any], float]:
    """Write ``segmentation.onnx`` of an edge head alone, for images ``[N, 3, H, W]``, N at least 2.

    Returns:
        Its entry for the manifest and its difference from the model.

    Raises:
        RecipeError: the graph does not reproduce the model within ``TOLERANCE``.
    """
    with torch.inference_mode():
        features = backbone.eval()(images)
    job = _edge_job(predict.head, features.clone(), images, Dim("N", min=1, max=MAX_BATCH))
    return _export("segmentation", job, folder)


def _identification_jobs(
    module: IdentificationModule, features: Tensor | None, batch: Dim
) -> dict[str, _Job]:
    """Embedding of crops, unless there are no features to try it on, and what joins several embeddings."""
    jobs: dict[str, _Job] = {}
    if features is not None:
        for name, head in (("identification", module.head), ("references", module.reference_head)):
            if head is not None:
                jobs[name] = _embedding_job(head, features, batch)
    if module.fusion is not None:
        jobs["fusion"] = _fusion_job(module.fusion, module.fusion.placeholder, {0: batch})
    if module.reference_fusion is not None and module.reference_fusion.attention is not None:
        example = torch.zeros(3, module.reference_fusion.attention.in_features)
        sides = {0: batch, 1: Dim("R", min=1, max=MAX_REFERENCES)}
        jobs["reference_fusion"] = _fusion_job(module.reference_fusion, example, sides)
    return jobs


def _embedding_job(head: nn.Module, features: Tensor, batch: Dim) -> _Job:
    sides = {0: batch, 1: Dim("tokens", min=2, max=128 * 128)}
    return _Job(head, {"features": features}, ("embeddings",), {"features": sides})


def _fusion_job(module: nn.Module, example: Tensor, dynamic: Mapping[int, Any]) -> _Job:
    """``embeddings [N, K, E]`` and which of them are ``present [N, K]`` to ``fused [N, E]``."""
    embeddings = nn.functional.normalize(torch.randn(2, *example.shape), dim=-1)
    present = torch.ones(embeddings.shape[:2], dtype=torch.bool)
    present[0, -1] = False
    inputs = {"embeddings": embeddings, "present": present}
    return _Job(module, inputs, ("fused",), dict.fromkeys(inputs, dynamic))


def _backbone_job(backbone: Backbone, images: Tensor, batch: Dim) -> _Job:
    patch = backbone.patch_size
    height, width = images.shape[2:]
    if height == width:
        # At the size of the position table there is nothing to interpolate: the graph would run at no other size.
        images = torch.rand(len(images), 3, height + patch, width) * 2 - 1
    sides = {2: patch * Dim("rows", min=2, max=128), 3: patch * Dim("columns", min=2, max=128)}
    return _Job(Features(backbone), {"images": images}, ("features",), {"images": {0: batch, **sides}})


def _edge_job(head: nn.Module, features: Tensor, images: Tensor, batch: Dim) -> _Job:
    return _Job(
        Predict(head),
        {"features": features, "images": images},
        ("scores", "labels", "mask_logits"),
        {"features": {0: batch}, "images": {0: batch}},
        measure=partial(largest_candidate_difference, ties=TIES),
    )


def _cascade_job(head: CascadeHead, features: Tensor, size: tuple[int, int]) -> _Job:
    """Compared at threshold 0: every detection counts."""
    return _Job(
        CascadeGraph(head, size),
        {"features": features[:1], "score_threshold": torch.zeros(1)},
        OUTPUTS,
        {"features": {}, "score_threshold": {}},
        onnx_translations(),
        partial(largest_detection_difference, ties=TIES),
    )


def _export(name: str, job: _Job, folder: Path) -> tuple[dict[str, Any], float]:
    path = folder / f"{name}.onnx"
    job.module.eval()
    entry = export_graph(
        job.module,
        job.inputs,
        job.outputs,
        path,
        dynamic_shapes=job.dynamic,
        translations=job.translations,
    )
    difference = largest_difference(job.module, job.inputs, job.outputs, path, job.measure)
    if difference > TOLERANCE:
        raise RecipeError(
            f"graph {name} differs from the model by {difference:.2g} (limit {TOLERANCE}); nothing was written"
        )
    return entry, difference
