"""Converted graphs: what is converted, what stays in float32, and how close the results are."""

from __future__ import annotations

import collections
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mca_perception.deploy.precision import int8
from mca_perception.deploy.precision.half import to_half
from mca_perception.deploy.precision.int8 import Int8Settings, quantise
from mca_perception.deploy.precision.layer_errors import LayerError, layer_errors, layer_table
from mca_perception.deploy.precision.smoothing import find_sites, smooth
from mca_perception.deploy.session import OnnxSession
from mca_perception.deploy.sessions import why_not
from mca_perception.deploy.tensor_rt_support import unsupported
from mca_perception.errors import BundleError, CalibrationError
from tests.support.graphs import inputs_of_feed_forward, write_feed_forward

CPU = ["CPUExecutionProvider"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    return write_feed_forward(tmp_path_factory.mktemp("graphs") / "graph.onnx")


def relative_error(graph: Path, other: Path) -> float:
    sessions = [OnnxSession(path, providers=CPU) for path in (graph, other)]
    found = [
        [session.run(inputs)["y"].ravel() for inputs in inputs_of_feed_forward(seed=9)]
        for session in sessions
    ]
    expected, changed = (np.concatenate(parts) for parts in found)
    return float(np.linalg.norm(changed - expected) / np.linalg.norm(expected))


def operators(path: Path) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def test_smoothing_finds_the_sub_norms_and_changes_no_result(graph, tmp_path) -> None:
    model = onnx.load(graph)
    assert [(site.output, site.weights) for site in find_sites(model)] == [
        ("norm1", ("in",)),
        ("norm2", ("out",)),
    ]
    maxima = int8._channel_maxima(model, inputs_of_feed_forward())
    assert maxima["norm1"].argmax() == 3
    onnx.save(smooth(model, maxima), tmp_path / "smooth.onnx")
    assert relative_error(graph, tmp_path / "smooth.onnx") < 1e-5
    smoothed = int8._channel_maxima(onnx.load(tmp_path / "smooth.onnx"), inputs_of_feed_forward())["norm1"]
    spread = [values.max() / np.median(values) for values in (maxima["norm1"], smoothed)]
    assert spread[1] < spread[0] / 3


def test_shared_constants_are_not_smoothed(graph) -> None:
    model = onnx.load(graph)
    model.graph.node[4].input[1] = "out"
    model.graph.node[3].input[1] = "shift2"  # one constant as scale and shift
    assert [site.output for site in find_sites(model)] == ["norm1"]


@pytest.mark.parametrize(
    ("settings", "limit"),
    [(Int8Settings(), 0.03), (Int8Settings(smoothing=None), 0.1), (Int8Settings(symmetric=True), 0.03)],
)
def test_int8_is_close_and_keeps_sensitive_operators(graph, tmp_path, settings, limit) -> None:
    target = tmp_path / "int8.onnx"
    quantise(graph, target, inputs_of_feed_forward, settings=settings)
    assert relative_error(graph, target) < limit
    counts = operators(target)
    assert counts["QuantizeLinear"] == 2  # before the two products with weights, and nowhere else
    assert counts["DequantizeLinear"] == 4
    model = onnx.load(target)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    kinds = {
        constants[node.input[2]].data_type for node in model.graph.node if node.op_type == "QuantizeLinear"
    }
    assert kinds == {TensorProto.INT8 if settings.symmetric else TensorProto.UINT8}
    scales = [t for node in model.graph.node if node.op_type == "DequantizeLinear" for t in node.input[1:2]]
    assert sorted(numpy_helper.to_array(constants[name]).size for name in scales)[-2:] == [
        32,
        64,
    ]  # per channel
    assert (unsupported(target) == []) is settings.symmetric  # TensorRT wants no offsets


def test_smoothing_makes_outliers_harmless(graph, tmp_path) -> None:
    errors = []
    for strength in (None, 0.5):
        quantise(
            graph, tmp_path / "x.onnx", inputs_of_feed_forward, settings=Int8Settings(smoothing=strength)
        )
        errors.append(relative_error(graph, tmp_path / "x.onnx"))
    assert errors[1] < errors[0]


def test_ranges_are_kept_by_model_data_and_settings(graph, tmp_path) -> None:
    cache, calls = tmp_path / "cache", []

    def samples() -> list[dict[str, np.ndarray]]:
        calls.append(1)
        return inputs_of_feed_forward()

    for digest, symmetric in (("a", False), ("a", False), ("b", False), ("a", True)):
        quantise(
            graph,
            tmp_path / "x.onnx",
            samples,
            settings=Int8Settings(symmetric=symmetric),
            data_digest=digest,
            cache=cache,
        )
    assert len(list(cache.glob("*.json"))) == 3
    assert relative_error(graph, tmp_path / "x.onnx") < 0.03


def test_int8_without_samples_is_refused(graph, tmp_path) -> None:
    with pytest.raises(CalibrationError, match="no calibration sample"):
        quantise(graph, tmp_path / "x.onnx", list)


@pytest.mark.parametrize(("kind", "element"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_half_converts_products_alone(graph, tmp_path, kind, element) -> None:
    target = tmp_path / "half.onnx"
    to_half(graph, target, kind)
    model = onnx.load(target)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds == {
        **dict.fromkeys(("scale1", "shift1", "scale2", "shift2"), TensorProto.FLOAT),
        **dict.fromkeys((f"in_{kind}", f"out_{kind}"), element),
    }
    shapes = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in shapes.graph.value_info}
    types |= {
        value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    }
    for node in model.graph.node:
        if node.op_type in ("LayerNormalization", "Softmax", "Gelu", "Add"):
            assert {types[name] for name in (*node.input, *node.output) if name in types} == {
                TensorProto.FLOAT
            }
        if node.op_type == "MatMul":
            assert types[node.output[0]] == element
    assert {types["x"], types["y"]} == {TensorProto.FLOAT}
    assert unsupported(target) == []


def test_weights_beyond_float16_are_refused(graph, tmp_path) -> None:
    model = onnx.load(graph)
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "in"]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1e6, "in"))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(BundleError, match="weight 'in' exceeds the range of float16; export as bf16"):
        to_half(tmp_path / "large.onnx", tmp_path / "half.onnx", "fp16")


def test_half_is_close(graph, tmp_path) -> None:
    to_half(graph, tmp_path / "half.onnx", "fp16")
    assert relative_error(graph, tmp_path / "half.onnx") < 2e-3


@pytest.mark.skipif(why_not("openvino") is not None, reason="OpenVINO is not installed")
def test_bfloat16_is_close(graph, tmp_path) -> None:
    from mca_perception.deploy.sessions.open_vino import OpenVinoSession

    to_half(graph, tmp_path / "half.onnx", "bf16")
    session, exact = OpenVinoSession(tmp_path / "half.onnx"), OnnxSession(graph, providers=CPU)
    (inputs,) = inputs_of_feed_forward(1)
    np.testing.assert_allclose(session.run(inputs)["y"], exact.run(inputs)["y"], atol=0.1)


def test_layer_errors_point_at_what_was_broken(graph, tmp_path) -> None:
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.name == "out":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:, ::-1].copy(), "out"))
    onnx.save(model, tmp_path / "broken.onnx")
    errors = layer_errors(graph, tmp_path / "broken.onnx", inputs_of_feed_forward(2))
    by_name = {entry.tensor: entry.error for entry in errors}
    assert by_name["hidden"] == 0
    assert by_name["update"] > 0.5
    first = layer_table(errors, worst=1).splitlines()[2]
    assert "| update | MatMul |" in first
    assert layer_errors(graph, graph, partial(inputs_of_feed_forward, 1)())[0] == LayerError(
        "hidden", "MatMul", 0
    )
