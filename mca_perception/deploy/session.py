"""Sessions: one interface to run a graph, whatever engine runs it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.errors import BundleError

__all__ = ["OnnxSession", "Session", "open_sessions"]

_DEFAULT_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class Session(Protocol):
    """Runs one graph; may be called from several threads."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph on inputs by name and return its outputs by name."""
        ...


class OnnxSession:
    """A graph in ONNX Runtime.

    Attributes:
        input_names: names of the graph's inputs.
        output_names: names of the graph's outputs.
        providers: execution providers in use, best first.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        providers: Sequence[str] | None = None,
        intra_op_threads: int | None = None,
    ) -> None:
        """Load a graph.

        Args:
            path: the ``.onnx`` file.
            providers: execution providers, best first; by default CUDA where it is available, then CPU.
            intra_op_threads: threads of one operator; by default one per core.

        Raises:
            BundleError: the file is missing or not a graph that this ONNX Runtime can run, or a provider that
                was asked for is not available.
        """
        available = ort.get_available_providers()
        missing = [name for name in providers or () if name not in available]
        if missing:
            raise BundleError(
                f"execution provider {missing[0]} is not available (there are: {', '.join(available)}); "
                "install the matching onnxruntime package or choose another provider"
            )
        chosen = list(providers or [name for name in _DEFAULT_PROVIDERS if name in available])
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if intra_op_threads is not None:
            options.intra_op_num_threads = intra_op_threads
        try:
            self._session = ort.InferenceSession(os.fspath(path), options, providers=chosen)
        except Exception as error:  # ONNX Runtime's errors have no common base of their own
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load {path}: {error}; export it again"
            ) from error
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.input_names: tuple[str, ...] = tuple(node.name for node in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(node.name for node in self._session.get_outputs())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph.

        Args:
            inputs: one contiguous array per input name.

        Returns:
            One array per output name.

        Raises:
            ValueError: the names are not the graph's input names.
        """
        if set(inputs) != set(self.input_names):
            raise ValueError(f"inputs are {sorted(inputs)}, the graph takes {sorted(self.input_names)}")
        outputs = self._session.run(
            None, {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        )
        return dict(zip(self.output_names, outputs, strict=True))


def open_sessions(
    bundle: ModelBundle, *, graphs: Collection[str] | None = None, **options: Any
) -> dict[str, Session]:
    """Open one session per graph of a bundle.

    Args:
        bundle: an opened bundle.
        graphs: open these alone, as far as the bundle has them; all by default.
        options: passed on to :class:`OnnxSession`.

    Raises:
        BundleError: a graph cannot be loaded, or its tensor names differ from the manifest.
    """
    sessions: dict[str, Session] = {}
    for name, spec in bundle.manifest.graphs.items():
        if graphs is not None and name not in graphs:
            continue
        session = OnnxSession(bundle.path_of(name), **options)
        declared = ({t.name for t in spec.inputs}, {t.name for t in spec.outputs})
        if declared != (set(session.input_names), set(session.output_names)):
            raise BundleError(
                f"{bundle.path}: graph {name!r} has other inputs or outputs ({session.input_names}, "
                f"{session.output_names}) than the manifest names; export the bundle again"
            )
        sessions[name] = session
    return sessions
