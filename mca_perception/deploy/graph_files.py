"""ONNX graphs on disk: float32 weights that are float16 numbers take half the bytes, and give the same results.

Models are rounded to float16 before they are exported, so that their weights lose nothing more. In the file they are
float16, with casts at the head of the graph that make them float32 again under their names: runtimes compute these
once, when they load the graph, since they read constants alone. What changes a graph reads it with `load_graph`, in
which such weights are plain float32 again, and writes it with `save_graph`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["SMALLEST_WEIGHT", "Stored", "load_graph", "replace_weights", "save_graph"]

SMALLEST_WEIGHT = 4096
"""Elements from which on it is worth storing a weight in another way."""

Stored = tuple[list[TensorProto], list[NodeProto]]
"""What a weight is stored as, and the nodes that make it of that, under its name."""

_STORED_NAME = "{}_as_float16"


def load_graph(path: str | os.PathLike[str]) -> ModelProto:
    """Read a graph; weights that `save_graph` stored as float16 are float32 initializers again, in their old places.

    Args:
        path: the ``.onnx`` file; tensors that it keeps in other files are read as well.
    """
    model = onnx.load(path)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    nodes = []
    for node in graph.node:
        name = _STORED_NAME.format(node.output[0])
        if node.op_type == "Cast" and node.input[0] == name and name in stored:
            weight = numpy_helper.to_array(stored[name]).astype(np.float32)
            stored[name].CopyFrom(numpy_helper.from_array(weight, node.output[0]))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def save_graph(model: ModelProto, path: str | os.PathLike[str]) -> None:
    """Write a graph as one file, large weights as float16 where that changes none of their bits.

    Args:
        model: the graph; is left in the form in which it is stored.
        path: the ``.onnx`` file to write.
    """
    replace_weights(model.graph, _as_float16)
    onnx.save(model, path)


def replace_weights(graph: GraphProto, store: Callable[[str, NDArray[np.float32]], Stored | None]) -> None:
    """Store float32 weights in another way; nodes at the head of the graph restore them.

    Args:
        graph: changed in place.
        store: gives, for the name of a weight and its values, how it is stored; None leaves it as it is.
    """
    inputs = {value.name for value in graph.input}  # weights that a caller may exchange
    tensors: list[TensorProto] = []
    nodes: list[NodeProto] = []
    for tensor in graph.initializer:
        found = None
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in inputs:
            found = store(tensor.name, numpy_helper.to_array(tensor))
        kept, restoring = found or ([tensor], [])
        tensors += kept
        nodes += restoring
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(tensors)
    graph.node.extend(nodes)


def _as_float16(name: str, values: NDArray[np.float32]) -> Stored | None:
    """A large weight as float16; None if a bit would change, or a value is NaN, whose bits runtimes may change."""
    if values.size < SMALLEST_WEIGHT:
        return None
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    restored = halves.astype(np.float32)
    if np.isnan(halves).any() or not np.array_equal(restored.view(np.uint32), values.view(np.uint32)):
        return None
    stored = _STORED_NAME.format(name)
    cast = helper.make_node("Cast", [stored], [name], stored, to=TensorProto.FLOAT)
    return [numpy_helper.from_array(halves, stored)], [cast]
