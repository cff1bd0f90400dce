"""Graphs in OpenVINO, on the CPU."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.bundle import Bundle, ModelBundle
from mca_perception.deploy.engine_cache import EngineCache, EngineKey, file_digest, processor
from mca_perception.deploy.manifest import TensorSpec
from mca_perception.deploy.sessions.base import Arrays, GraphSession, SessionOptions
from mca_perception.deploy.sessions.shape_profiles import OfUsualShapes, Shapes, usual_shapes_of
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


class _Compiled:
    """A compiled graph; every thread has a request of its own."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self._of_thread = threading.local()

    def request(self) -> Any:
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self.graph.create_infer_request()
        return request


class OpenVinoSession(GraphSession):
    """A graph compiled by OpenVINO; shapes that are known to be usual have a compiled graph of their own."""

    backend: ClassVar[str] = "openvino"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        precision: str = "f32",
        intra_op_threads: int | None = None,
        parallel: int = 1,
        cache: EngineCache | None = None,
        usual_shapes: Sequence[Shapes] = (),
    ) -> None:
        """Compile a graph, or take it from the cache.

        Args:
            path: the ``.onnx`` file.
            precision: arithmetic of what the graph states as float32: ``f32``, or ``bf16``, which is what OpenVINO
                chooses by itself on processors that have it.
            intra_op_threads: threads of one run; by default one per core, or its share of them.
            parallel: runs at the same time; further ones wait for these.
            cache: keeps the compiled graph.
            usual_shapes: input shapes for which the graph is compiled once more, when they first come.

        Raises:
            BundleError: OpenVINO cannot read or compile the graph.
        """
        self._path, self._precision, self._cache = path, precision, cache
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            **({} if parallel == 1 else {"NUM_STREAMS": parallel}),
            **({} if intra_op_threads is None else {"INFERENCE_NUM_THREADS": intra_op_threads * parallel}),
        }
        self._of_any_shape = self._compile({})
        self._of_usual_shapes = OfUsualShapes(usual_shapes, self._compile)
        self.inputs = tuple(_spec(port) for port in self._of_any_shape.graph.inputs)
        self.outputs = tuple(_spec(port) for port in self._of_any_shape.graph.outputs)
        self.device = f"CPU ({precision})"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph; see :meth:`.GraphSession.run`."""
        arrays = self._contiguous(inputs)
        request = (self._of_usual_shapes.get(arrays) or self._of_any_shape).request()
        try:
            # Inputs are read in place; outputs are copied, since the request reuses their memory.
            request.infer(arrays, share_inputs=True)
        except RuntimeError as error:
            shapes = {name: array.shape for name, array in arrays.items()}
            raise ValueError(f"the graph cannot run on {shapes}: {str(error).strip()[:300]}") from error
        return {name: np.array(request.get_output_tensor(i).data) for i, name in enumerate(self.output_names)}

    def _compile(self, shapes: Shapes) -> _Compiled:
        """Compile the graph for inputs of these shapes, or of any, or take it from the cache."""
        import openvino

        core = _core()

        def compiled() -> Any:
            if not shapes:
                return core.compile_model(self._path, "CPU", self._settings)
            model = core.read_model(self._path)
            model.reshape({name: list(shape) for name, shape in shapes.items()})
            return core.compile_model(model, "CPU", self._settings)

        def build(target: str) -> None:
            stream = io.BytesIO()
            compiled().export_model(stream)
            Path(target).write_bytes(stream.getvalue())

        try:
            if self._cache is None:
                return _Compiled(compiled())
            streams = self._settings.get("NUM_STREAMS", 1)
            threads = self._settings.get("INFERENCE_NUM_THREADS", "all")
            key = EngineKey(
                file_digest(self._path),
                f"openvino {openvino.__version__}",
                processor(),
                self._precision,
                f"{json.dumps(shapes, sort_keys=True) if shapes else 'any'}, threads {threads}, streams {streams}",
            )
            engine = io.BytesIO(self._cache.get_or_build(key, build))
            return _Compiled(core.import_model(engine, "CPU", self._settings))
        except RuntimeError as error:
            reason = str(error).strip()[:500]
            raise BundleError(
                f"OpenVINO {openvino.__version__} cannot run {self._path}: {reason}; export it again, or choose "
                "onnxruntime-cpu"
            ) from error


def why_not() -> str | None:
    """Why OpenVINO cannot be used here; None when it can."""
    if find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install -c constraints.txt -e '.[openvino]'"
    return None


def open_graph(bundle: Bundle, graph: str, options: SessionOptions) -> OpenVinoSession:
    """Open a graph of a bundle, in the arithmetic that it was exported in."""
    return OpenVinoSession(
        bundle.path_of(graph),
        precision=_arithmetic(bundle),
        intra_op_threads=options.threads,
        parallel=options.parallel,
        cache=options.cache,
        usual_shapes=usual_shapes_of(bundle, graph),
    )


def _arithmetic(bundle: Bundle) -> str:
    """bfloat16 for bundles of that precision on processors that have it, also between the products; else float32."""
    precision = bundle.manifest.precision if isinstance(bundle, ModelBundle) else None
    if precision is None or precision.kind != "bf16":
        return "f32"
    return "bf16" if "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def _spec(port: Any) -> TensorSpec:
    shape = [
        side.get_length() if side.is_static else f"{port.get_any_name()}_{axis}"
        for axis, side in enumerate(port.partial_shape)
    ]
    return TensorSpec(
        name=port.get_any_name(), dtype=np.dtype(port.element_type.to_dtype()).name, shape=shape
    )
