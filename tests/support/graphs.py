"""A small graph like a transformer's feed-forward part, with a channel far larger than the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 32


def write_feed_forward(
    path: Path, *, outlier: float = 40.0, width: int = WIDTH, halves: bool = False
) -> Path:
    """Write a feed-forward part with sub-LN and residual, then attention of its tokens to each other.

    Args:
        path: file.
        outlier: factor of one channel of the first LayerNorm.
        width: channels.
        halves: round the weights to float16, stored as float32 all the same.
    """
    rng = np.random.default_rng(0)
    scale = np.ones(width, np.float32)
    scale[3] = outlier
    constants = {
        "scale1": scale,
        "shift1": rng.normal(size=width).astype(np.float32),
        "in": rng.normal(size=(width, 2 * width)).astype(np.float32) / np.sqrt(width),
        "scale2": np.ones(2 * width, np.float32),
        "shift2": np.zeros(2 * width, np.float32),
        "out": rng.normal(size=(2 * width, width)).astype(np.float32) / np.sqrt(2 * width),
    }
    if halves:
        constants = {name: array.astype(np.float16) for name, array in constants.items()}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale1", "shift1"], ["norm1"], "norm1"),
        helper.make_node("MatMul", ["norm1", "in"], ["hidden"], "in"),
        helper.make_node("Gelu", ["hidden"], ["active"], "gelu"),
        helper.make_node("LayerNormalization", ["active", "scale2", "shift2"], ["norm2"], "norm2"),
        helper.make_node("MatMul", ["norm2", "out"], ["update"], "out"),
        helper.make_node("Add", ["x", "update"], ["sum"], "residual"),
        helper.make_node("Transpose", ["sum"], ["turned"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["sum", "turned"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["weights"], "softmax"),
        helper.make_node("MatMul", ["weights", "sum"], ["y"], "mix"),
    ]
    graph = helper.make_graph(
        nodes,
        "feed_forward",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "T", width])],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def inputs_of_feed_forward(count: int = 6, seed: int = 1, width: int = WIDTH) -> list[dict[str, np.ndarray]]:
    """Inputs of several sizes."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1 + i % 2, 5 + i, width)).astype(np.float32)} for i in range(count)]
