"""Graphs in TensorRT: engines built once per GPU and kept, one execution context per shape profile.

Written against the published Python bindings (10 and 11); networks are strongly typed, so the precision is that of the
exported graph and TensorRT chooses none by itself.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.bundle import Bundle
from mca_perception.deploy.engine_cache import EngineCache, EngineKey, file_digest
from mca_perception.deploy.manifest import GraphSpec
from mca_perception.deploy.sessions.base import Arrays, GraphSession, SessionOptions
from mca_perception.deploy.sessions.cuda_memory import Buffer, Cuda
from mca_perception.deploy.sessions.shape_profiles import Profile, profiles_of
from mca_perception.deploy.sessions.tensor_rt_builder import build_engine, logger_of
from mca_perception.errors import BundleError

__all__ = ["TensorRtSession", "open_graph", "why_not"]


class TensorRtSession(GraphSession):
    """A graph as an engine of this GPU.

    Every shape profile has a context, a stream and buffers of its own, so that inputs of different profiles run side
    by side; two of the same profile wait for each other.
    """

    backend: ClassVar[str] = "tensorrt"

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        profiles: Sequence[Profile],
        *,
        precision: str,
        cache: EngineCache,
        on_state: Callable[[str], None],
        build: bool = True,
    ) -> None:
        """Take the engine from the cache, or build it, which takes minutes.

        Args:
            path: the ``.onnx`` file.
            spec: its inputs and outputs.
            profiles: shapes that the engine is made for.
            precision: of the graph, for the key.
            cache: where engines are kept.
            on_state: told how far building is.
            build: build an engine that the cache lacks.

        Raises:
            BundleError: there is no engine and ``build`` is off, TensorRT cannot build it, or it cannot be loaded.
        """
        import tensorrt

        self._cuda = Cuda()
        self.device = self._cuda.device
        key = EngineKey(
            model=file_digest(path),
            builder=f"tensorrt {tensorrt.__version__}",
            device=self.device,
            precision=precision,
            profile=json.dumps([profile.as_lists() for profile in profiles]),
        )
        engine = cache.get(key)
        if engine is None and not build:
            raise BundleError(
                f"no TensorRT engine of {path.name} for {self.device} in {cache.folder}; build it with "
                f"`mca export {path.parent} --target tensorrt --build-only`"
            )
        if engine is None:
            timing = cache.folder / f"timing-{key.builder.replace(' ', '-')}.cache"

            def write(target: str) -> None:
                Path(target).write_bytes(build_engine(path, profiles, timing, on_state=on_state))

            engine = cache.get_or_build(key, write, on_state=on_state)
        self.inputs, self.outputs = tuple(spec.inputs), tuple(spec.outputs)
        self._profiles = tuple(profiles)
        # The engine must outlive its contexts, the runtime the engine.
        self._runtime = tensorrt.Runtime(logger_of(tensorrt))
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise BundleError(
                f"TensorRT {tensorrt.__version__} cannot load its engine of {path}; remove {cache.folder} and build "
                "again"
            )
        dtypes = {t.name: np.dtype(t.dtype) for t in (*self.inputs, *self.outputs)}
        self._lanes = [_Lane(self._engine, self._cuda, i, dtypes) for i in range(len(self._profiles))]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the engine; see :meth:`.GraphSession.run`.

        Raises:
            ValueError: no profile holds the inputs' shapes, or the names are not the graph's.
        """
        arrays = self._contiguous(inputs)
        shapes = {name: array.shape for name, array in arrays.items()}
        for profile, lane in zip(self._profiles, self._lanes, strict=True):
            if profile.holds(shapes):
                return lane.run(arrays, self.output_names)
        raise ValueError(
            f"the engine was built for {[profile.as_lists() for profile in self._profiles]}, the inputs are {shapes}"
        )

    def close(self) -> None:
        """Free the GPU memory."""
        super().close()
        for lane in self._lanes:
            lane.close()


class _Lane:
    """A context with its stream and buffers; buffers grow to the largest shape seen and are then reused."""

    def __init__(self, engine: Any, cuda: Cuda, profile: int, dtypes: Mapping[str, np.dtype[Any]]) -> None:
        self._cuda, self._dtypes = cuda, dtypes
        self._lock = threading.Lock()
        self._stream = cuda.stream()
        self._context = engine.create_execution_context()
        if self._context is None:
            raise BundleError(
                "TensorRT could not make an execution context: the GPU is out of memory; free some"
            )
        if not self._context.set_optimization_profile_async(profile, self._stream):
            raise BundleError(
                f"TensorRT refuses profile {profile} of its own engine; remove it from the cache"
            )
        self._buffers: dict[str, Buffer] = {}

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        with self._lock:
            for name, array in inputs.items():
                if not self._context.set_input_shape(name, tuple(array.shape)):
                    raise ValueError(f"the engine cannot take {name} of shape {array.shape}")
                self._buffer(name, array.nbytes).upload(array, self._stream)
            found: Arrays = {}
            for name in outputs:
                found[name] = np.empty(tuple(self._context.get_tensor_shape(name)), self._dtypes[name])
                self._buffer(name, found[name].nbytes)
            if not self._context.execute_async_v3(self._stream):
                raise RuntimeError("TensorRT could not run the engine; its log says why")
            for name, array in found.items():
                self._buffers[name].download(array, self._stream)
            self._cuda.synchronise(self._stream)
            for name, array in found.items():
                self._buffers[name].copy_to(array)
            return found

    def close(self) -> None:
        with self._lock:
            for buffer in self._buffers.values():
                buffer.free()
            self._buffers.clear()

    def _buffer(self, name: str, size: int) -> Buffer:
        """The tensor's buffer, large enough, with its address told to the context."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            if buffer is not None:
                buffer.free()
            buffer = self._buffers[name] = Buffer(self._cuda, size)
        if not self._context.set_tensor_address(name, buffer.address):
            raise RuntimeError(f"TensorRT does not know tensor {name!r} of its own engine")
        return buffer


def why_not() -> str | None:
    """Why TensorRT cannot be used here; None when it can."""
    if find_spec("tensorrt") is None:
        return "TensorRT is not installed; see docs/deploy.md, section TensorRT"
    if find_spec("cuda") is None:
        return "the CUDA bindings for Python are not installed: pip install cuda-bindings"
    try:
        Cuda()
    except (BundleError, ImportError) as error:
        return str(error)
    return None


def open_graph(bundle: Bundle, graph: str, options: SessionOptions) -> TensorRtSession:
    """Open a graph of a bundle.

    Raises:
        BundleError: the graph's outputs have sizes that depend on its inputs' values, or see :class:`TensorRtSession`.
    """
    spec = bundle.manifest.graphs[graph]
    precision = getattr(bundle.manifest, "precision", None)
    return TensorRtSession(
        bundle.path_of(graph),
        spec,
        profiles_of(bundle, graph),
        precision=precision.kind if precision is not None else "fp32",
        cache=options.cache or EngineCache(),
        on_state=options.on_state,
        build=options.build,
    )
