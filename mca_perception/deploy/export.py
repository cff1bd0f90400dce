"""PyTorch modules to ONNX graphs, and the check that ONNX Runtime computes the same numbers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxscript.optimizer import optimize as optimise_graph
from torch import Tensor, nn

from mca_perception.deploy.graph_files import save_graph
from mca_perception.deploy.session import OnnxSession

OPSET = 20

MAX_FOLDED_ELEMENTS = 4096
"""Largest constant that is computed at export."""

Outputs = Mapping[str, NDArray[Any]]
"""What a graph returns, by output name."""


def export_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    *,
    dynamic_shapes: Mapping[str, Mapping[int, Any]],
    translations: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
) -> dict[str, Any]:
    """Export a module as one self-contained ONNX file; weights that are float16 numbers are stored as float16.

    Args:
        module: in evaluation mode on the CPU; called with ``inputs`` in order.
        inputs: example tensors by graph input name.
        outputs: graph output names.
        path: file to write.
        dynamic_shapes: per input, ``{axis: torch.export.Dim}``.
        translations: by torch operator that the exporter does not know, a function that makes its ONNX nodes.

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
            custom_translation_table=dict(translations or {}),
            optimize=False,
        )
        assert program is not None  # always with dynamo=True
        # Larger constants are left to the runtime to compute when it loads the graph: the file stays small.
        optimise_graph(program.model, output_size_limit=MAX_FOLDED_ELEMENTS)
        program.save(path, include_initializers=True, external_data=False)
    model = onnx.load(path)
    _strip_traces(model.graph)
    save_graph(model, path)
    graph = model.graph
    return {
        "file": path.name,
        "inputs": [_describe(value) for value in graph.input],
        "outputs": [_describe(value) for value in graph.output],
    }


def largest_array_difference(expected: Outputs, found: Outputs) -> float:
    """Largest absolute difference over the floating-point outputs."""
    return max(
        float(np.abs(found[name] - array).max())
        for name, array in expected.items()
        if np.issubdtype(array.dtype, np.floating)
    )


def largest_difference(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    measure: Callable[[Outputs, Outputs], float] = largest_array_difference,
) -> float:
    """Difference between what the module and its graph in ONNX Runtime compute, as ``measure`` sees it."""
    with torch.inference_mode():
        expected = module(*inputs.values())
    expected = (expected,) if isinstance(expected, Tensor) else expected
    arrays = {name: tensor.numpy() for name, tensor in zip(outputs, expected, strict=True)}
    session = OnnxSession(path, providers=["CPUExecutionProvider"])
    return measure(arrays, session.run({name: tensor.numpy() for name, tensor in inputs.items()}))


def _strip_traces(graph: onnx.GraphProto) -> None:
    """Remove the exporter's stack traces, which name the folders of the machine, and its shapes of intermediate values.

    Both grow the file; runtimes infer the shapes again.
    """
    del graph.value_info[:]
    for entry in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
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
