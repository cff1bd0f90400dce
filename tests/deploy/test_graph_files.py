"""Graphs whose weights are float16 numbers take half the space, and everything that reads them sees the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mca_perception.deploy.fused_preprocessing import fuse_preprocessing
from mca_perception.deploy.graph_files import SMALLEST_WEIGHT, load_graph, save_graph
from mca_perception.deploy.precision.half import to_half
from mca_perception.deploy.precision.int8 import Int8Settings, quantise
from mca_perception.deploy.precision.layer_errors import layer_errors
from mca_perception.deploy.precision.smoothing import find_sites
from mca_perception.deploy.session import OnnxSession
from mca_perception.deploy.sessions import why_not
from mca_perception.deploy.sessions.base import GraphSession
from mca_perception.deploy.tensor_rt_support import unsupported
from tests.support.graphs import inputs_of_feed_forward, write_feed_forward

WIDTH = 64
INPUTS = partial(inputs_of_feed_forward, width=WIDTH)
Pair = tuple[Path, Path]


def stored_as(path: Path) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}


def pair_of(folder: Path, plain: Path) -> Pair:
    save_graph(onnx.load(plain), folder / "stored.onnx")
    return plain, folder / "stored.onnx"


@pytest.fixture(scope="module")
def graphs(tmp_path_factory) -> Pair:
    """A graph, and the same as it is stored."""
    folder = tmp_path_factory.mktemp("graphs")
    return pair_of(folder, write_feed_forward(folder / "plain.onnx", width=WIDTH, halves=True))


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory) -> Pair:
    """A convolution of images, and the same as it is stored."""
    folder = tmp_path_factory.mktemp("convolutions")
    kernel = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float16)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["images", "kernel"], ["y"], "conv")],
        "convolution",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32, 9, 9])],
        [numpy_helper.from_array(kernel.astype(np.float32), "kernel")],
    )
    onnx.save(model_of(graph), folder / "plain.onnx")
    return pair_of(folder, folder / "plain.onnx")


def model_of(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def sum_with(weight: np.ndarray, inputs: Sequence[str] = ("x",)) -> onnx.ModelProto:
    """``y = x + weight``."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, weight.shape) for name in (*inputs, "y")]
    nodes = [helper.make_node("Add", ["x", "weight"], ["y"], "add")]
    tensors = [numpy_helper.from_array(weight, "weight")]
    return model_of(helper.make_graph(nodes, "sum", values[:-1], values[-1:], tensors))


def open_in_onnx_runtime(path: Path) -> GraphSession:
    return OnnxSession(path, providers=["CPUExecutionProvider"])


def open_in_openvino(path: Path) -> GraphSession:
    from mca_perception.deploy.sessions.open_vino import OpenVinoSession

    return OpenVinoSession(path)


BACK_ENDS = [
    open_in_onnx_runtime,
    pytest.param(
        open_in_openvino,
        marks=pytest.mark.skipif(why_not("openvino") is not None, reason="OpenVINO is not installed"),
    ),
]


@pytest.mark.parametrize("open_graph", BACK_ENDS)
def test_half_the_size_and_every_bit_of_the_results(
    graphs, open_graph: Callable[[Path], GraphSession]
) -> None:
    plain, stored = graphs
    assert stored.stat().st_size < 0.6 * plain.stat().st_size
    onnx.checker.check_model(stored, full_check=True)
    assert unsupported(stored) == []
    first, second = (open_graph(path) for path in graphs)
    assert first.inputs == second.inputs
    for inputs in INPUTS():
        assert first.run(inputs)["y"].tobytes() == second.run(inputs)["y"].tobytes()


def test_reading_restores_the_graph_and_storing_it_twice_changes_nothing(graphs, tmp_path) -> None:
    plain, stored = graphs
    assert load_graph(stored) == load_graph(plain) == onnx.load(plain)
    save_graph(onnx.load(stored), tmp_path / "twice.onnx")
    save_graph(load_graph(stored), tmp_path / "again.onnx")
    assert (tmp_path / "twice.onnx").read_bytes() == stored.read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() == stored.read_bytes()


@pytest.mark.parametrize("open_graph", BACK_ENDS)
@pytest.mark.parametrize(
    ("value", "half"),
    [
        (-0.0, True),
        (65504.0, True),  # the largest
        (2.0**-24, True),  # the smallest denormal one
        (-3 * 2.0**-24, True),
        (-np.inf, True),
        (65520.0, False),  # would round to infinity
        (2.0**-25, False),  # would round to zero
        (1.5 * 2.0**-24, False),
        (1e-40, False),  # denormal in float32
        (0.1, False),
        (np.nan, False),
    ],
)
def test_weights_are_stored_as_halves_if_they_are(tmp_path, value: float, half: bool, open_graph) -> None:
    weight = np.arange(SMALLEST_WEIGHT, dtype=np.float16).astype(np.float32).reshape(64, -1)
    weight[3, 5] = value
    onnx.save(sum_with(weight), tmp_path / "plain.onnx")
    pair_of(tmp_path, tmp_path / "plain.onnx")
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    assert list(stored_as(tmp_path / "stored.onnx").values()) == [kind]
    inputs = {"x": np.full(weight.shape, -0.0, np.float32)}  # the sum has the weight's sign of zero
    first, second = (open_graph(tmp_path / name).run(inputs)["y"] for name in ("plain.onnx", "stored.onnx"))
    assert first.tobytes() == second.tobytes()
    if half:
        assert second.tobytes() == weight.tobytes()


@pytest.mark.parametrize(
    ("size", "inputs"), [(SMALLEST_WEIGHT - 1, ("x",)), (SMALLEST_WEIGHT, ("x", "weight"))]
)
def test_small_weights_and_those_a_caller_may_exchange_stay(tmp_path, size: int, inputs) -> None:
    save_graph(sum_with(np.ones(size, np.float32), inputs), tmp_path / "x.onnx")
    assert stored_as(tmp_path / "x.onnx") == {"weight": TensorProto.FLOAT}


def test_a_graph_whose_weights_lie_in_another_file_becomes_one_file(graphs, tmp_path) -> None:
    plain, stored = graphs
    apart = tmp_path / "apart.onnx"
    onnx.save(onnx.load(plain), apart, save_as_external_data=True, location="weights", size_threshold=0)
    assert apart.stat().st_size < 2000
    save_graph(load_graph(apart), tmp_path / "one.onnx")
    (tmp_path / "weights").unlink()
    (inputs,) = INPUTS(1)
    first, second = (open_in_onnx_runtime(path).run(inputs)["y"] for path in (plain, tmp_path / "one.onnx"))
    assert first.tobytes() == second.tobytes()
    assert stored_as(tmp_path / "one.onnx") == stored_as(stored)


@pytest.mark.parametrize(
    "convert",
    [
        partial(to_half, kind="fp16"),
        partial(to_half, kind="bf16"),
        partial(quantise, samples=INPUTS),
        partial(quantise, samples=INPUTS, settings=Int8Settings(smoothing=None, symmetric=True)),
    ],
)
def test_precisions_are_the_same_from_either_file(graphs, tmp_path, convert) -> None:
    for path, name in zip(graphs, ("a.onnx", "b.onnx"), strict=True):
        convert(path, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_smoothing_and_layer_errors_see_the_weights(graphs) -> None:
    plain, stored = graphs
    assert find_sites(load_graph(stored)) == find_sites(onnx.load(plain))
    errors = layer_errors(plain, stored, INPUTS(2))
    assert errors == layer_errors(plain, plain, INPUTS(2))
    assert {entry.error for entry in errors} == {0.0}


def test_graphs_that_take_pixels_are_the_same_and_as_small(convolutions, tmp_path) -> None:
    for path, name in zip(convolutions, ("a.onnx", "b.onnx"), strict=True):
        fuse_preprocessing(path, tmp_path / name, [0.5] * 3, [0.25] * 3)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert TensorProto.FLOAT16 in stored_as(tmp_path / "b.onnx").values()
    pixels = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), np.uint8)
    images = ((pixels / np.float32(255) - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
    found = open_in_onnx_runtime(tmp_path / "b.onnx").run({"images": pixels})["y"]
    expected = open_in_onnx_runtime(convolutions[0]).run({"images": images})["y"]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_what_int8_leaves_in_float32_stays_small(convolutions, tmp_path) -> None:
    images = {"images": np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)}
    quantise(convolutions[1], tmp_path / "int8.onnx", lambda: [images])
    assert list(stored_as(tmp_path / "int8.onnx").values()) == [TensorProto.FLOAT16]
    first, second = (
        open_in_onnx_runtime(p).run(images)["y"] for p in (convolutions[0], tmp_path / "int8.onnx")
    )
    assert first.tobytes() == second.tobytes()
