"""PyTorch modules to ONNX graphs, and the check that ONNX Runtime computes the same numbers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from mca_perception.deploy.session import OnnxSession

OPSET = 20


def export_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    *,
    dynamic_shapes: Mapping[str, Mapping[int, Any]],
) -> dict[str, Any]:
    """Export a module as one self-contained ONNX file.

    Args:
        module: in evaluation mode on the CPU; called with ``inputs`` in order.
        inputs: example tensors by graph input name.
        outputs: graph output names.
        path: file to write.
        dynamic_shapes: per input, ``{axis: torch.export.Dim}``.

    Returns:
        The graph's entry for a bundle manifest: file, inputs and outputs with dtype and shape.
    """
    with warnings.catch_warnings(), _QuietLogging():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(dict(dynamic_shapes[name]) for name in inputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None  # always with dynamo=True
        program.save(path, include_initializers=True, external_data=False)
    model = onnx.load(path)
    _strip_traces(model.graph)
    onnx.save(model, path)
    graph = model.graph
    return {
        "file": path.name,
        "inputs": [_describe(value) for value in graph.input],
        "outputs": [_describe(value) for value in graph.output],
    }


def largest_difference(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path
) -> float:
    """Largest absolute difference between the module and its graph in ONNX Runtime, over floating-point outputs."""
    with torch.inference_mode():
        expected = module(*inputs.values())
    expected = (expected,) if isinstance(expected, Tensor) else expected
    session = OnnxSession(path, providers=["CPUExecutionProvider"])
    found = session.run({name: tensor.numpy() for name, tensor in inputs.items()})
    differences = [
        float(np.abs(found[name] - tensor.numpy()).max())
        for name, tensor in zip(outputs, expected, strict=True)
        if tensor.is_floating_point()
    ]
    return max(differences)


def _strip_traces(graph: onnx.GraphProto) -> None:
    """Remove the exporter's stack traces: they name the folders of the machine and grow the file."""
    for entry in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del entry.metadata_props[:]


def _describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = [side.dim_param or side.dim_value for side in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype, "shape": shape}


class _QuietLogging:
    """The exporter logs every pass; errors still come through as exceptions."""

    def __enter__(self) -> None:
        self.previous = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self.previous)
