"""A bundle as a model repository of Triton Inference Server."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from mca_perception.deploy.bundle import Bundle
from mca_perception.deploy.manifest import GraphSpec, TensorSpec
from mca_perception.errors import BundleError

__all__ = ["DATA_TYPES", "MARKER", "model_configuration", "model_name", "write_repository"]

DATA_TYPES = {
    "bool": ("TYPE_BOOL", "BOOL"),
    "float16": ("TYPE_FP16", "FP16"),
    "float32": ("TYPE_FP32", "FP32"),
    "int64": ("TYPE_INT64", "INT64"),
    "uint8": ("TYPE_UINT8", "UINT8"),
}
"""By dtype: name in ``config.pbtxt``, and on the wire."""

MARKER = "mca-repository.txt"
MAX_BATCH = 64
QUEUE_MICROSECONDS = 2000


def model_name(bundle: Bundle, graph: str) -> str:
    """Name of a graph on the server: with the fingerprint, so that a server may hold several versions of a bundle."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", bundle.manifest.name)
    return f"{plain}_{bundle.fingerprint}_{graph}"


def model_configuration(bundle: Bundle, graph: str, *, device: Literal["gpu", "cpu"] = "gpu") -> str:
    """``config.pbtxt`` of a graph, run by Triton's ONNX Runtime.

    Requests of several robots are put into one batch where the graph's first side is a batch throughout.

    Raises:
        BundleError: a tensor has a dtype that Triton does not know.
    """
    spec = bundle.manifest.graphs[graph]
    batched = _is_batched(spec)
    lines = [
        f'name: "{model_name(bundle, graph)}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH if batched else 0}",
    ]
    lines += [_tensor("input", tensor, batched) for tensor in spec.inputs]
    lines += [_tensor("output", tensor, batched) for tensor in spec.outputs]
    if batched:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}")
    kind = "KIND_GPU" if device == "gpu" else "KIND_CPU"
    lines.append(f"instance_group [ {{ count: 1 kind: {kind} }} ]")
    return "\n".join(lines) + "\n"


def write_repository(bundle: Bundle, directory: Path, *, device: Literal["gpu", "cpu"] = "gpu") -> list[str]:
    """Write every graph of a bundle as ``<model>/config.pbtxt`` and ``<model>/1/model.onnx``.

    Args:
        bundle: an opened bundle.
        directory: folder of the repository; what an earlier export wrote there is replaced.
        device: where the server runs the graphs.

    Returns:
        Names of the models.

    Raises:
        BundleError: the folder holds something else, or a tensor cannot be served.
    """
    if directory.is_file() or (
        directory.is_dir() and any(directory.iterdir()) and not (directory / MARKER).is_file()
    ):
        raise BundleError(
            f"{directory} exists and is not a repository written by this command; choose another"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as work:
        staging = Path(work, "repository")
        staging.mkdir()
        names = []
        for graph in bundle.manifest.graphs:
            name = model_name(bundle, graph)
            (staging / name / "1").mkdir(parents=True)
            (staging / name / "config.pbtxt").write_text(
                model_configuration(bundle, graph, device=device), encoding="utf-8"
            )
            shutil.copyfile(bundle.path_of(graph), staging / name / "1" / "model.onnx")
            names.append(name)
        (staging / MARKER).write_text(
            f"Models of {bundle.manifest.name} {bundle.manifest.version}, {bundle.fingerprint}.\n",
            encoding="utf-8",
        )
        if directory.exists():
            directory.replace(Path(work, "previous"))
        staging.replace(directory)
    return names


def _is_batched(spec: GraphSpec) -> bool:
    """Whether the first side of every tensor is the same dynamic one."""
    first = {tensor.shape[0] if tensor.shape else 0 for tensor in (*spec.inputs, *spec.outputs)}
    return len(first) == 1 and isinstance(first.pop(), str)


def _tensor(kind: str, tensor: TensorSpec, batched: bool) -> str:
    if tensor.dtype not in DATA_TYPES:
        raise BundleError(
            f"tensor {tensor.name!r} is {tensor.dtype}, which is not served; export it as float32"
        )
    sides = tensor.shape[1:] if batched else tensor.shape
    dims = ", ".join(str(side) if isinstance(side, int) else "-1" for side in sides)
    return f'{kind} [ {{ name: "{tensor.name}" data_type: {DATA_TYPES[tensor.dtype][0]} dims: [ {dims} ] }} ]'
