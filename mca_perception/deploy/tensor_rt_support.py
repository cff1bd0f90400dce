"""What TensorRT's ONNX parser documents to take, checked against a graph without TensorRT.

From the support matrix of onnx-tensorrt for TensorRT 10.0 (operators, opsets 9 to 20, restrictions). Later releases
take more; a graph that passes here needs nothing that they added.
"""

from __future__ import annotations

import os
from collections import Counter

import onnx
from onnx import TensorProto, helper, numpy_helper

from mca_perception.errors import BundleError

__all__ = ["MATRIX_VERSION", "NOT_SUPPORTED", "OPSETS", "unsupported"]

MATRIX_VERSION = "TensorRT 10.0"
OPSETS = range(9, 21)

# Operators of opset 20 that the matrix says no to, or does not list.
NOT_SUPPORTED = frozenset(
    {
        "AffineGrid",
        "Bernoulli",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "BlackmanWindow",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "ConvInteger",
        "DFT",
        "Det",
        "DynamicQuantizeLinear",
        "HammingWindow",
        "HannWindow",
        "ImageDecoder",
        "MatMulInteger",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "NegativeLogLikelihoodLoss",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "RegexFullMatch",
        "STFT",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "TfIdfVectorizer",
        "Unique",
    }
)
_RESIZE_MODES = {"nearest", "linear"}
# The matrix does not list cubic; the parser's source maps it to a layer that the bindings list.
_RESIZE_UNLISTED = {"cubic"}
_TYPES = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
    TensorProto.UINT8,
}
_MAX_TOPK = 3840


def unsupported(path: str | os.PathLike[str]) -> list[str]:
    """What a graph holds that TensorRT does not document to take; empty when it may be parsed.

    Raises:
        BundleError: the file is no ONNX graph.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's errors have no common base
        raise BundleError(f"{path} is no valid ONNX graph ({str(error)[:200]}); export it again") from error
    problems = []
    for entry in model.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            problems.append(f"operators of domain {entry.domain!r}")
        elif entry.version not in OPSETS:
            problems.append(f"opset {entry.version}, not {OPSETS.start} to {OPSETS.stop - 1}")
    counts = Counter(node.op_type for node in model.graph.node if node.op_type in NOT_SUPPORTED)
    problems += [f"{count} x {name}" for name, count in sorted(counts.items())]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        problems += _restrictions(node, constants)
    return list(dict.fromkeys(problems))


def _restrictions(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> list[str]:
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type == "Resize":
        mode = attributes.get("mode", b"nearest").decode()
        if mode not in _RESIZE_MODES | _RESIZE_UNLISTED:
            return [f"Resize of mode {mode}"]
    if node.op_type == "LayerNormalization" and len([name for name in node.output if name]) > 1:
        return ["LayerNormalization with more than one output"]
    if node.op_type == "TopK":
        if not attributes.get("sorted", 1):
            return ["TopK that is not sorted"]
        count = constants.get(node.input[1])
        if count is not None and numpy_helper.to_array(count).max() >= _MAX_TOPK:
            return [f"TopK of {_MAX_TOPK} or more"]
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
        offset = constants.get(node.input[2])
        if offset is None or numpy_helper.to_array(offset).any():
            return [f"{node.op_type} with an offset (unsigned int8); export with --target tensorrt"]
        if node.op_type == "QuantizeLinear" and offset.data_type == TensorProto.UINT8:
            return ["QuantizeLinear to unsigned int8; export with --target tensorrt"]
    tensors = (entry.t for entry in node.attribute if entry.HasField("t"))
    return [
        f"a constant of type {helper.tensor_dtype_to_string(t.data_type)}"
        for t in tensors
        if t.data_type not in _TYPES
    ]
