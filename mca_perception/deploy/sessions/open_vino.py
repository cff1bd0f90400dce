"""Graphs in OpenVINO, on the CPU."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.bundle import Bundle
from mca_perception.deploy.engine_cache import EngineCache, EngineKey, file_digest, processor
from mca_perception.deploy.manifest import TensorSpec
from mca_perception.deploy.sessions.base import Arrays, GraphSession, SessionOptions
from mca_perception.errors import BundleError

__all__ = ["OpenVinoSession", "open_graph", "why_not"]


@cache
def _core() -> Any:
    """OpenVINO, once per process and until its end.

    Once its plugin for the processor is unloaded, the next signal (Ctrl-C) ends the process with a segmentation fault:
    the thread's stack for signals is gone with it.
    """
    import openvino

    return openvino.Core()


class OpenVinoSession(GraphSession):
    """A graph compiled by OpenVINO; every thread has a request of its own."""

    backend: ClassVar[str] = "openvino"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        precision: str = "f32",
        intra_op_threads: int | None = None,
        cache: EngineCache | None = None,
    ) -> None:
        """Compile a graph, or take it from the cache.

        Args:
            path: the ``.onnx`` file.
            precision: arithmetic of what the graph states as float32: ``f32``, or ``bf16``, which is what OpenVINO
                chooses by itself on processors that have it.
            intra_op_threads: threads; by default one per core.
            cache: keeps the compiled graph.

        Raises:
            BundleError: OpenVINO cannot read or compile the graph.
        """
        import openvino

        core = _core()
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if intra_op_threads is not None:
            settings["INFERENCE_NUM_THREADS"] = intra_op_threads
        try:
            if cache is None:
                compiled = core.compile_model(path, "CPU", settings)
            else:
                key = EngineKey(
                    file_digest(path),
                    f"openvino {openvino.__version__}",
                    processor(),
                    precision,
                    f"any, threads {intra_op_threads or 'all'}",
                )

                def build(target: str) -> None:
                    stream = io.BytesIO()
                    core.compile_model(path, "CPU", settings).export_model(stream)
                    Path(target).write_bytes(stream.getvalue())

                compiled = core.import_model(io.BytesIO(cache.get_or_build(key, build)), "CPU", settings)
        except RuntimeError as error:
            raise BundleError(
                f"OpenVINO {openvino.__version__} cannot run {path}: {str(error).strip()[:500]}; export it again, or "
                "choose onnxruntime-cpu"
            ) from error
        self._compiled = compiled
        self._of_thread = threading.local()
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)
        self.device = f"CPU ({precision})"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph; see :meth:`.GraphSession.run`."""
        arrays = self._contiguous(inputs)
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._compiled.create_infer_request()
        try:
            # Inputs are read in place; outputs are copied, since the request reuses their memory.
            request.infer(arrays, share_inputs=True)
        except RuntimeError as error:
            shapes = {name: array.shape for name, array in arrays.items()}
            raise ValueError(f"the graph cannot run on {shapes}: {str(error).strip()[:300]}") from error
        return {name: np.array(request.get_output_tensor(i).data) for i, name in enumerate(self.output_names)}


def why_not() -> str | None:
    """Why OpenVINO cannot be used here; None when it can."""
    if find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install -c constraints.txt -e '.[openvino]'"
    return None


def open_graph(bundle: Bundle, graph: str, options: SessionOptions) -> OpenVinoSession:
    """Open a graph of a bundle, in the arithmetic that it states."""
    return OpenVinoSession(bundle.path_of(graph), intra_op_threads=options.threads, cache=options.cache)


def _spec(port: Any) -> TensorSpec:
    shape = [
        side.get_length() if side.is_static else f"{port.get_any_name()}_{axis}"
        for axis, side in enumerate(port.partial_shape)
    ]
    return TensorSpec(
        name=port.get_any_name(), dtype=np.dtype(port.element_type.to_dtype()).name, shape=shape
    )
