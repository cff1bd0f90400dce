"""Static int8: QuantizeLinear and DequantizeLinear around matrix products and convolutions, the rest in float32."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from mca_perception.deploy.graph_files import load_graph, save_graph
from mca_perception.deploy.precision.smoothing import find_sites, smooth
from mca_perception.deploy.sessions.base import Arrays
from mca_perception.errors import CalibrationError

__all__ = ["Int8Settings", "quantise"]

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_PRODUCTS = ("MatMul", "Gemm")
Samples = Callable[[], Iterable[Arrays]]
"""Gives a graph's inputs, from the start each time that it is called."""


@dataclass(frozen=True)
class Int8Settings:
    """How a graph is quantised.

    LayerNorm, softmax, activation functions, residual sums and products of two activations always stay in float32.

    Attributes:
        smoothing: strength of outlier smoothing (see :mod:`.smoothing`); None for none.
        convolutions: also quantise convolutions.
        symmetric: signed activations around 0, which TensorRT requires; unsigned with an offset otherwise, which
            processors are faster with.
    """

    smoothing: float | None = 0.5
    convolutions: bool = False
    symmetric: bool = False


def quantise(
    path: Path,
    target: Path,
    samples: Samples,
    *,
    settings: Int8Settings | None = None,
    data_digest: str = "",
    cache: Path | None = None,
) -> None:
    """Quantise a graph with one range per activation and one per channel of every weight.

    Args:
        path: float32 graph.
        target: file to write.
        samples: the inputs that ranges are found on.
        settings: how; the defaults when not given.
        data_digest: hash of the samples.
        cache: folder that keeps the ranges by the hash of graph, samples and settings.

    Raises:
        CalibrationError: there are no samples.
    """
    settings = settings or Int8Settings()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(load_graph(path), prepared, skip_symbolic_shape=True, skip_optimization=True)
        model = onnx.load(prepared)
        if settings.smoothing is not None and find_sites(model):
            model = smooth(model, _channel_maxima(model, samples()), strength=settings.smoothing)
            onnx.save(model, prepared)
        key = _key(prepared, data_digest, settings)
        ranges = None
        if cache is not None and data_digest:
            cache.mkdir(parents=True, exist_ok=True)
            ranges = cache / f"{key}.json"
        kinds = [*_PRODUCTS, *(_CONVOLUTIONS if settings.convolutions else ())]
        activation = QuantType.QInt8 if settings.symmetric else QuantType.QUInt8
        reader = _Reader(samples())
        quantize_static(
            prepared,
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=kinds,
            nodes_to_exclude=_without_weights(model, kinds),
            per_channel=True,
            activation_type=activation,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=ranges,
            extra_options={
                # What follows a product is float32 again: LayerNorm, softmax and the residual sum read exact values.
                "OpTypesToExcludeOutputQuantization": list(_PRODUCTS),
                "ActivationSymmetric": settings.symmetric,
            },
        )
        save_graph(onnx.load(target), target)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped base
    """Samples for ONNX Runtime's calibrators."""

    def __init__(self, samples: Iterable[Arrays]) -> None:
        self._samples: Iterator[Arrays] = iter(samples)

    def get_next(self) -> Arrays | None:
        return next(self._samples, None)


class _quiet:  # noqa: N801  # reads as a statement
    """ONNX Runtime's quantiser reports every step to the root logger."""

    def __enter__(self) -> None:
        self._previous = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._previous)


def _without_weights(model: onnx.ModelProto, kinds: Iterable[str]) -> list[str]:
    """Names of nodes whose factors are all activations, as in attention scores."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in kinds and not constants.intersection(node.input[:2])
    ]


def _channel_maxima(model: onnx.ModelProto, samples: Iterable[Arrays]) -> dict[str, NDArray[np.float32]]:
    """Largest magnitude of every channel of what the sites of smoothing put out."""
    names = [site.output for site in find_sites(model)]
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    maxima: dict[str, NDArray[np.float32]] = {}
    for inputs in samples:
        for name, array in zip(names, session.run(names, inputs), strict=True):
            largest = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
            maxima[name] = np.maximum(maxima.get(name, largest), largest)
    if not maxima:
        raise CalibrationError("there is no calibration sample; give a folder with images")
    return maxima


def _key(path: Path, data_digest: str, settings: Int8Settings) -> str:
    text = json.dumps([data_digest, asdict(settings), ort.__version__], sort_keys=True).encode()
    return hashlib.sha256(path.read_bytes() + text).hexdigest()
