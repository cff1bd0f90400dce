"""Where a changed graph starts to differ from the one that it was made from: error by tensor, in graph order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from mca_perception.deploy.graph_files import load_graph
from mca_perception.deploy.precision.smoothing import find_sites
from mca_perception.deploy.sessions.base import Arrays

__all__ = ["LayerError", "layer_errors", "layer_table"]

_REPORTED = ("LayerNormalization", "MatMul", "Gemm", "Conv", "ConvTranspose", "Softmax", "Add")


@dataclass(frozen=True)
class LayerError:
    """Relative error of one tensor that both graphs have.

    Attributes:
        tensor: its name.
        operator: what makes it.
        error: ``|changed - reference| / |reference|``, Frobenius norms over all samples.
    """

    tensor: str
    operator: str
    error: float


def layer_errors(reference: Path, changed: Path, samples: Iterable[Arrays]) -> list[LayerError]:
    """Compare all tensors of float type that two graphs have in common, in graph order.

    Args:
        reference: the graph before the change.
        changed: the graph after it.
        samples: inputs of both.
    """
    first, second = load_graph(reference), load_graph(changed)
    made_by = {name: node.op_type for node in first.graph.node for name in node.output}
    shared = {name for node in second.graph.node for name in node.output}
    rescaled = {site.output for site in find_sites(first)}  # on purpose, what reads them undoes it
    names = [
        name
        for name, kind in made_by.items()
        if name in shared and kind in _REPORTED and name not in rescaled
    ]
    if not names:
        return []
    squares = np.zeros((2, len(names)))
    sessions = [_showing(model, names) for model in (first, second)]
    for inputs in samples:
        found = [session.run(names, inputs) for session in sessions]
        for column, (expected, other) in enumerate(zip(*found, strict=True)):
            if expected.shape == other.shape:
                squares[0, column] += np.square(np.float64(other) - expected).sum()
                squares[1, column] += np.square(np.float64(expected)).sum()
            else:
                squares[0, column] = np.inf
    errors = np.sqrt(squares[0] / np.maximum(squares[1], 1e-30))
    return [LayerError(name, made_by[name], float(e)) for name, e in zip(names, errors, strict=True)]


def layer_table(errors: list[LayerError], *, worst: int = 15) -> str:
    """The largest jumps of the error as a Markdown table: what is before a jump is not to blame."""
    jumps = np.diff([0.0, *(entry.error for entry in errors)])
    order = np.argsort(-np.nan_to_num(jumps, nan=np.inf))[:worst]
    rows = [
        f"| {i} | {errors[i].tensor} | {errors[i].operator} | {errors[i].error:.4g} |" for i in sorted(order)
    ]
    return "\n".join(["| place | tensor | operator | relative error |", "|---|---|---|---|", *rows]) + "\n"


def _showing(model: onnx.ModelProto, names: list[str]) -> ort.InferenceSession:
    """A session that gives these tensors; outputs that the graph has already are not listed twice."""
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
