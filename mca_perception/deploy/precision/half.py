"""float16 and bfloat16: matrix products and convolutions in half the bits, everything that is sensitive in float32.

A ViT whose LayerNorm, softmax or residual stream is computed in float16 loses accuracy without a word, so these are
not converted at all: a product casts what it reads, and what it gives is cast back. Runtimes that fuse do that in the
product's own kernel. Inputs and outputs of the graph stay float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mca_perception.deploy.graph_files import load_graph, save_graph
from mca_perception.errors import BundleError

__all__ = ["CONVERTED", "to_half"]

CONVERTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that are converted."""

_KINDS = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}


def to_half(path: Path, target: Path, kind: Literal["fp16", "bf16"]) -> None:
    """Convert a float32 graph.

    Args:
        path: the graph.
        target: file to write.
        kind: ``fp16`` or ``bf16``.

    Raises:
        BundleError: a weight is too large for float16.
    """
    model = load_graph(path)
    element, dtype = _KINDS[kind]
    graph = model.graph
    constants = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    halved: set[str] = set()
    nodes: list[onnx.NodeProto] = []

    def half(name: str) -> str:
        """Name of a tensor in half precision, made when it is first asked for."""
        converted = f"{name}_{kind}"
        if name and converted not in halved:
            halved.add(converted)
            if name in constants:
                array = _cast(numpy_helper.to_array(constants[name]), dtype, f"{path}: weight {name!r}")
                graph.initializer.append(numpy_helper.from_array(array, converted))
            else:
                nodes.append(helper.make_node("Cast", [name], [converted], f"cast_{converted}", to=element))
        return converted if name else name

    for node in graph.node:
        if node.op_type not in CONVERTED:
            nodes.append(node)
            continue
        inputs, (output,) = [half(name) for name in node.input], node.output
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        changed.input[:], changed.output[:] = inputs, [f"{output}_raw"]
        back = helper.make_node("Cast", [f"{output}_raw"], [output], f"cast_{output}", to=TensorProto.FLOAT)
        nodes += [changed, back]
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    save_graph(model, target)


def _cast(array: NDArray[np.float32], dtype: type, what: str) -> NDArray[np.generic]:
    with np.errstate(over="ignore"):
        converted: NDArray[np.generic] = array.astype(dtype)
    if not np.isfinite(converted.astype(np.float32)).all():
        raise BundleError(f"{what} exceeds the range of {np.dtype(dtype).name}; export as bf16")
    return converted


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove weights that only converted nodes read."""
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
