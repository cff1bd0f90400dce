"""Outlier channels moved from activations into weights, so that one int8 range fits all channels.

Xiao et al., "SmoothQuant", ICML 2023, equations 3 and 4: the scale of channel ``j`` is
``max|X_j|**alpha / max|W_j|**(1 - alpha)``; activations are divided by it and weights multiplied. Here every matrix
product follows a LayerNorm (Magneto's sub-LN), whose scale and shift take the division: the graph gets no new nodes
and computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

__all__ = ["SmoothSite", "find_sites", "smooth"]

_SMALLEST = 1e-5


@dataclass(frozen=True)
class SmoothSite:
    """A LayerNorm all of whose readers are matrix products with constant weights ``[in, out]``.

    Attributes:
        output: name of the LayerNorm's output.
        scale: name of its scale ``[in]``.
        shift: name of its shift ``[in]``, if it has one.
        weights: names of the readers' weights.
    """

    output: str
    scale: str
    shift: str | None
    weights: tuple[str, ...]


def find_sites(model: onnx.ModelProto) -> list[SmoothSite]:
    """The LayerNorms of a graph that smoothing applies to."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    uses: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
            uses[name] = uses.get(name, 0) + 1
    outputs = {value.name for value in model.graph.output}
    sites = []
    for node in model.graph.node:
        if node.op_type != "LayerNormalization" or node.output[0] in outputs:
            continue
        affine = list(node.input[1:])
        following = readers.get(node.output[0], [])
        products = [
            reader.input[1]
            for reader in following
            if reader.op_type == "MatMul"
            and reader.input[0] == node.output[0]
            and reader.input[1] in constants
        ]
        # Shared constants would be scaled twice.
        own = all(name in constants and uses[name] == 1 for name in (*affine, *products))
        if following and len(products) == len(following) and own:
            shift = affine[1] if len(affine) > 1 else None
            sites.append(SmoothSite(node.output[0], affine[0], shift, tuple(products)))
    return sites


def smooth(
    model: onnx.ModelProto, maxima: Mapping[str, NDArray[np.float32]], *, strength: float = 0.5
) -> onnx.ModelProto:
    """Move outliers from the activations at every site into the weights that follow.

    Args:
        model: the graph; left alone.
        maxima: largest magnitude ``[in]`` of every site's output, by its name.
        strength: the exponent alpha; 0 leaves activations as they are, 1 makes all their channels alike.

    Returns:
        A graph that computes the same.
    """
    smoothed = onnx.ModelProto()
    smoothed.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in smoothed.graph.initializer}
    for site in find_sites(model):
        weights = {name: numpy_helper.to_array(constants[name]) for name in site.weights}
        largest = np.max([np.abs(weight).max(axis=1) for weight in weights.values()], axis=0)
        scales = np.maximum(maxima[site.output], _SMALLEST) ** strength
        scales /= np.maximum(largest, _SMALLEST) ** (1 - strength)
        scales = np.clip(scales, _SMALLEST, None).astype(np.float32)
        for name in filter(None, (site.scale, site.shift)):
            _store(constants[name], numpy_helper.to_array(constants[name]) / scales)
        for name, weight in weights.items():
            _store(constants[name], weight * scales[:, None])
    return smoothed


def _store(tensor: onnx.TensorProto, array: NDArray[np.floating[Any]]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
