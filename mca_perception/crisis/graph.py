"""The ONNX graph of a linear model: feature ids and counts in, probabilities out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.crisis.linear import SMALLEST_NORM, LinearModel

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["GRAPH_INPUTS", "GRAPH_OUTPUTS", "linear_graph"]

OPSET = 17
IR_VERSION = 8
GRAPH_INPUTS = [
    {"name": "feature_ids", "dtype": "int64", "shape": ["N", "L"]},
    {"name": "feature_counts", "dtype": "float32", "shape": ["N", "L"]},
]
GRAPH_OUTPUTS = [{"name": "probabilities", "dtype": "float32", "shape": ["N", "C"]}]


def linear_graph(model: LinearModel) -> ModelProto:
    """Build the graph: ``feature_ids [N, L]``, ``feature_counts [N, L]`` -> ``probabilities [N, C]``.

    Tables are stored as float16, with one row of zeros for padding, and computed with as float32.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    classes = model.weights.shape[1]
    constants: dict[str, NDArray[Any]] = {
        "idf": np.append(model.idf, 0).astype(np.float16),
        "weights": np.concatenate([model.weights, np.zeros((1, classes))]).astype(np.float16),
        "bias": model.bias.astype(np.float32),
        "temperature": np.array(model.temperature, np.float32),
        "first_character": np.array(model.config.buckets, np.int64),
        "smallest": np.array(SMALLEST_NORM, np.float32),
        "one": np.array(1, np.float32),
        "feature_axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node(kind, inputs, [output], **options) for kind, inputs, output, options in _nodes()
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [
            helper.make_tensor_value_info("feature_ids", TensorProto.INT64, ["N", "L"]),
            helper.make_tensor_value_info("feature_counts", TensorProto.FLOAT, ["N", "L"]),
        ],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="mca_perception",
    )
    checker.check_model(proto)
    return proto


def _nodes() -> list[tuple[str, list[str], str, dict[str, Any]]]:
    """Operator, inputs, output and attributes of every node."""
    to_float = {"to": 1}
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Gather", ["idf", "feature_ids"], "idf_half", {}),
        ("Cast", ["idf_half"], "idf_of", to_float),
        ("Max", ["feature_counts", "one"], "at_least_one", {}),
        ("Log", ["at_least_one"], "log_count", {}),
        ("Add", ["log_count", "one"], "frequency", {}),
        ("Mul", ["frequency", "idf_of"], "tf_idf", {}),
        ("Less", ["feature_ids", "first_character"], "is_word", {}),
        ("Cast", ["is_word"], "word_mask", to_float),
        ("Mul", ["tf_idf", "word_mask"], "words", {}),
        ("Sub", ["tf_idf", "words"], "characters", {}),
    ]
    for kind in ("words", "characters"):
        nodes += [
            ("ReduceL2", [kind], f"{kind}_length", {"axes": [1], "keepdims": 1}),
            ("Max", [f"{kind}_length", "smallest"], f"{kind}_divisor", {}),
            ("Div", [kind, f"{kind}_divisor"], f"{kind}_scaled", {}),
        ]
    return [
        *nodes,
        ("Add", ["words_scaled", "characters_scaled"], "scaled", {}),
        ("Unsqueeze", ["scaled", "feature_axis"], "scaled_row", {}),
        ("Gather", ["weights", "feature_ids"], "weights_half", {}),
        ("Cast", ["weights_half"], "weights_of", to_float),
        ("MatMul", ["scaled_row", "weights_of"], "sums", {}),
        ("Squeeze", ["sums", "feature_axis"], "sum", {}),
        ("Add", ["sum", "bias"], "margins", {}),
        ("Div", ["margins", "temperature"], "logits", {}),
        ("Softmax", ["logits"], "probabilities", {"axis": -1}),
    ]
