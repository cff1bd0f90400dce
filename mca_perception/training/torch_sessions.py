"""Graphs of a bundle as PyTorch modules: built from the manifest's recipe and filled with the bundle's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mca_perception.backbone import Backbone, create_backbone
from mca_perception.defects.model import DefectHead
from mca_perception.defects.recipe import DefectsRecipe
from mca_perception.defects.task import head_config
from mca_perception.deploy.bundle import Bundle
from mca_perception.deploy.manifest import GraphSpec, Manifest
from mca_perception.deploy.sessions.base import Arrays, GraphSession, SessionOptions
from mca_perception.errors import BundleError
from mca_perception.identification.model import IdentificationConfig, IdentificationHead
from mca_perception.segmentation.model import SegmentationConfig, SegmentationHead
from mca_perception.segmentation.recipe import SegmentationRecipe
from mca_perception.training.checkpoints import DEFECT_WEIGHTS, WEIGHTS
from mca_perception.training.graphs import Features, Predict

__all__ = ["TorchSession", "built_module", "open_graph", "why_not"]

_PARTS = {
    "backbone": (WEIGHTS, "backbone."),
    "segmentation": (WEIGHTS, "heads.segmentation."),
    "identification": (WEIGHTS, "heads.identification.head."),
    "defects": (DEFECT_WEIGHTS, "heads.defects."),
    "defect_views": (DEFECT_WEIGHTS, "heads.defects.views."),
}
"""Graphs that can be built again: the file of their weights, and what their names begin with."""

_CONSTANT_WEIGHTS: dict[str, str | int | bool | Callable[..., Any]] = {"freezing": True}
"""Lets the compiler pack weights for products beforehand."""


class TorchSession(GraphSession):
    """A module, eager or compiled, on the GPU where there is one."""

    backend: ClassVar[str] = "torch"

    def __init__(
        self, module: nn.Module, spec: GraphSpec, *, compiled: bool = False, threads: int | None = None
    ) -> None:
        """Take over a module.

        Args:
            module: called with the inputs in the order of ``spec``.
            spec: inputs and outputs.
            compiled: pass it through ``torch.compile`` with weights as constants; the first run then takes long, and so
                does the first with another shape.
            threads: of one run on a CPU; torch's own number when not given.
        """
        gpu = torch.cuda.is_available()
        self.device = torch.cuda.get_device_name() if gpu else "CPU"
        self._torch_device = torch.device("cuda" if gpu else "cpu")
        module = module.eval().to(self._torch_device)
        self._call: Any = torch.compile(module, options=_CONSTANT_WEIGHTS) if compiled else module
        self._threads = threads
        self.inputs, self.outputs = tuple(spec.inputs), tuple(spec.outputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the module; see :meth:`.GraphSession.run`."""
        tensors = [
            torch.from_numpy(array).to(self._torch_device) for array in self._contiguous(inputs).values()
        ]
        if self._threads is not None:  # belongs to the calling thread
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            found = self._call(*tensors)
        found = (found,) if isinstance(found, Tensor) else found
        return {name: part.cpu().numpy() for name, part in zip(self.output_names, found, strict=True)}


def why_not() -> str | None:
    """Nothing speaks against it: torch is there, or this module could not have been imported."""
    return None


def open_graph(bundle: Bundle, graph: str, options: SessionOptions) -> TorchSession:
    """Build the module of a graph and run it; see :func:`built_module`."""
    module, spec = built_module(bundle, graph), bundle.manifest.graphs[graph]
    return TorchSession(module, spec, compiled=options.compiled, threads=options.threads)


def built_module(bundle: Bundle, graph: str) -> nn.Module:
    """The module of a graph, with the bundle's weights.

    Raises:
        BundleError: the graph is none that can be built again, the manifest has no usable recipe, the weights do not
            fit it, or the bundle's graphs were changed after training (quantised, for instance).
    """
    manifest = bundle.manifest
    if graph not in _PARTS or not isinstance(manifest, Manifest):
        raise BundleError(
            f"{bundle.path}: graph {graph!r} cannot be run by torch, only {', '.join(_PARTS)}; choose onnxruntime-cpu"
        )
    if manifest.precision is not None:
        raise BundleError(
            f"{bundle.path} computes in {manifest.precision.kind}, its weights file does not; "
            "choose onnxruntime-cpu, or the bundle that it was exported from"
        )
    file, prefix = _PARTS[graph]
    try:
        built = _build(manifest, graph)
        weights = {
            name.removeprefix(prefix): value.to(built.state_dict()[name.removeprefix(prefix)].dtype)
            for name, value in load_file(bundle.path / file).items()
            if name.startswith(prefix)
        }
        built.load_state_dict(weights)
    except (KeyError, ValidationError, RuntimeError, OSError, SafetensorError) as error:
        raise BundleError(
            f"{bundle.path}: {graph} cannot be built again from the manifest's recipe and {file} "
            f"({str(error)[:300]}); choose onnxruntime-cpu"
        ) from error
    if graph == "segmentation":
        return Predict(built)
    return Features(built) if isinstance(built, Backbone) else built


def _build(manifest: Manifest, graph: str) -> nn.Module:
    spec, recipe = manifest.backbone, manifest.training["recipe"]
    if graph == "backbone":
        if recipe.get("adapter"):
            raise KeyError("the backbone has an adapter")
        return create_backbone(spec.name, img_size=spec.img_size, modalities=("vision",))
    if graph == "segmentation":
        section = SegmentationRecipe.model_validate(recipe["segmentation"])
        fields = SegmentationConfig.__dataclass_fields__
        settings = {name: getattr(section, name) for name in fields if hasattr(section, name)}
        return SegmentationHead(spec.embed_dim, SegmentationConfig(**settings))
    if graph in ("defects", "defect_views"):
        return _defect_part(manifest, graph)
    if manifest.identification is None:
        raise KeyError("the manifest has no section identification")
    config = IdentificationConfig(manifest.identification.embedding_dim)
    return IdentificationHead(spec.embed_dim, config)


def _defect_part(manifest: Manifest, graph: str) -> nn.Module:
    if manifest.defects is None:
        raise KeyError("the manifest has no section defects")
    section = DefectsRecipe.model_validate(manifest.defects.training["recipe"]["defects"])
    head = DefectHead(manifest.backbone.embed_dim, head_config(section))
    return head if graph == "defects" else head.views
