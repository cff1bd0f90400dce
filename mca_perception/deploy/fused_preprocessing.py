"""Graphs that take camera pixels: normalisation and channel order inside, a quarter of the bytes to hand over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mca_perception.deploy.graph_files import load_graph, save_graph
from mca_perception.errors import BundleError

__all__ = ["IMAGES", "fuse_preprocessing"]

IMAGES = "images"
"""Name of the input that is changed; it keeps its name."""


def fuse_preprocessing(path: Path, target: Path, mean: Sequence[float], std: Sequence[float]) -> None:
    """Put ``(pixels / 255 - mean) / std`` and the change from NHWC to NCHW in front of a graph.

    Args:
        path: graph with an input ``images``, float32 ``[N, 3, H, W]``.
        target: file to write; its input ``images`` is uint8 ``[N, H, W, 3]`` RGB.
        mean: by channel.
        std: by channel.

    Raises:
        BundleError: the graph has no such input.
    """
    model = load_graph(path)
    graph = model.graph
    entry = next((value for value in graph.input if value.name == IMAGES), None)
    kind = entry.type.tensor_type if entry is not None else None
    if kind is None or kind.elem_type != TensorProto.FLOAT or len(kind.shape.dim) != 4:
        raise BundleError(f"{path} has no float32 input {IMAGES!r} of four sides; leave it as it is")
    inner = f"{IMAGES}_normalised"
    for node in graph.node:
        node.input[:] = [inner if name == IMAGES else name for name in node.input]
    batch, _, height, width = [side.dim_param or side.dim_value for side in kind.shape.dim]
    entry_index = [value.name for value in graph.input].index(IMAGES)
    graph.input[entry_index].CopyFrom(
        helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [batch, height, width, 3])
    )
    constants = {
        "pixel_mean": 255 * np.asarray(mean, np.float32),
        "pixel_std": 255 * np.asarray(std, np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    front = [
        helper.make_node("Cast", [IMAGES], ["pixels"], "pixels", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels", "pixel_mean"], ["centred"], "centred"),
        helper.make_node("Div", ["centred", "pixel_std"], ["scaled"], "scaled"),
        helper.make_node("Transpose", ["scaled"], [inner], inner, perm=[0, 3, 1, 2]),
    ]
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*front, *nodes])
    save_graph(model, target)
