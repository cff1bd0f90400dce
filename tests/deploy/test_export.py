"""Exported files: what they hold, and that ONNX Runtime computes what the module does."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto

from mca_perception.deploy.export import export_graph, largest_difference
from mca_perception.deploy.graph_files import SMALLEST_WEIGHT


@pytest.mark.parametrize(("rounded", "kind"), [(True, TensorProto.FLOAT16), (False, TensorProto.FLOAT)])
def test_weights_that_are_halves_are_stored_as_halves(tmp_path, rounded: bool, kind: int) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, SMALLEST_WEIGHT // 64).eval()
    if rounded:
        layer.half().float()
    path, inputs = tmp_path / "layer.onnx", {"x": torch.randn(3, 64)}
    entry = export_graph(layer, inputs, ["y"], path, dynamic_shapes={"x": {0: torch.export.Dim("N")}})
    assert entry["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 64]}]
    tensors = onnx.load(path).graph.initializer
    assert sorted((list(tensor.dims), tensor.data_type) for tensor in tensors) == [
        ([64], TensorProto.FLOAT),
        ([64, 64], kind),
    ]
    assert largest_difference(layer, inputs, ["y"], path) < 1e-5
