"""Graphs in ONNX Runtime, on the CPU or a GPU."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import onnxruntime as ort
from numpy.typing import NDArray

from mca_perception.deploy.bundle import Bundle
from mca_perception.deploy.engine_cache import EngineCache, EngineKey, file_digest, processor
from mca_perception.deploy.manifest import TensorSpec
from mca_perception.deploy.sessions.base import Arrays, GraphSession, SessionOptions
from mca_perception.deploy.sessions.denormals import denormals_as_zero
from mca_perception.deploy.sessions.shape_profiles import OfUsualShapes, Shapes, usual_shapes_of
from mca_perception.errors import BundleError

__all__ = ["CPU", "CUDA", "OnnxSession", "open_cpu", "open_cuda", "open_graph", "why_no_cpu", "why_no_cuda"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_DEFAULT_PROVIDERS = (CUDA, CPU)
_DTYPES = {"float": "float32", "float16": "float16", "double": "float64"}


class OnnxSession(GraphSession):
    """A graph in ONNX Runtime; shapes that are known to be usual have a session of their own.

    Attributes:
        providers: execution providers in use, best first.
    """

    backend: ClassVar[str] = "onnxruntime"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        providers: Sequence[str] | None = None,
        intra_op_threads: int | None = None,
        cache: EngineCache | None = None,
        usual_shapes: Sequence[Shapes] = (),
    ) -> None:
        """Load a graph.

        Args:
            path: the ``.onnx`` file.
            providers: execution providers, best first; by default CUDA where it is available, then CPU.
            intra_op_threads: threads of one operator; by default one per core.
            cache: keeps the graph as this runtime has optimised it for this processor; CPU only.
            usual_shapes: input shapes for which the graph is loaded once more, when they first come; CPU only.

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
        self._path, self._threads = path, intra_op_threads
        self._cache = cache if chosen == [CPU] else None
        self._session = self._open(chosen, {})
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.device = "CPU" if self.providers[0] == CPU else self.providers[0]
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        self._of_usual_shapes = OfUsualShapes(usual_shapes if chosen == [CPU] else (), self._open_for)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph; see :meth:`.GraphSession.run`."""
        arrays = self._contiguous(inputs)
        session = self._of_usual_shapes.get(arrays) or self._session
        with denormals_as_zero():
            outputs = session.run(None, arrays)
        return dict(zip(self.output_names, outputs, strict=True))

    def _open_for(self, shapes: Shapes) -> ort.InferenceSession:
        sides = {
            side: length
            for spec in self.inputs
            for side, length in zip(spec.shape, shapes[spec.name], strict=True)
            if isinstance(side, str)
        }
        return self._open([CPU], sides)

    def _open(self, providers: list[str], sides: Mapping[str, int]) -> ort.InferenceSession:
        """Load the graph; dynamic sides in ``sides`` get this length, others keep any."""
        try:
            options = _options(sides)
            if self._threads is not None:
                options.intra_op_num_threads = self._threads
            if self._cache is None:
                return _load(os.fspath(self._path), options, providers)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            return _load(_optimised(self._path, self._cache, sides), options, providers)
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common base of their own
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load {self._path}: {error}; export it again"
            ) from error


def why_no_cpu() -> str | None:
    """Nothing speaks against it: ONNX Runtime is a requirement of the package."""
    return None


def why_no_cuda() -> str | None:
    """Why ONNX Runtime cannot use a GPU here; None when it can."""
    if CUDA in ort.get_available_providers():
        return None
    return "this onnxruntime has no CUDA provider; install onnxruntime-gpu in its place (docs/install.md)"


def open_graph(bundle: Bundle, graph: str, options: SessionOptions) -> OnnxSession:
    """Open a graph of a bundle with the providers of the options."""
    return OnnxSession(
        bundle.path_of(graph),
        providers=options.providers or None,
        intra_op_threads=options.threads,
        cache=options.cache,
        usual_shapes=usual_shapes_of(bundle, graph),
    )


def open_cpu(bundle: Bundle, graph: str, options: SessionOptions) -> OnnxSession:
    """Open a graph of a bundle on the CPU."""
    return open_graph(bundle, graph, replace(options, providers=(CPU,)))


def open_cuda(bundle: Bundle, graph: str, options: SessionOptions) -> OnnxSession:
    """Open a graph of a bundle on the GPU, what the GPU lacks on the CPU.

    Raises:
        BundleError: ONNX Runtime fell back to the CPU, as it does silently when a CUDA library is missing.
    """
    session = open_graph(bundle, graph, replace(options, providers=(CUDA, CPU)))
    if session.providers[0] != CUDA:
        raise BundleError(
            "ONNX Runtime could not start its CUDA provider (driver, CUDA or cuDNN missing or of another version); "
            "see docs/install.md, section GPU, or choose onnxruntime-cpu"
        )
    return session


def _spec(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = [side if isinstance(side, int | str) else "?" for side in node.shape]
    return TensorSpec(name=node.name, dtype=_DTYPES.get(kind, kind), shape=shape)


def _options(sides: Mapping[str, int]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Threads that wait actively take the cores from everything else on the robot, and from each other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    for side, length in sides.items():
        options.add_free_dimension_override_by_name(side, length)
    return options


def _load(model: str | bytes, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
    # The process's first session sets the calling thread's arithmetic for good, hence the frame around it. The
    # optimisation left out makes Gemm of products before int8 can be recognised in them, and gains nothing in float32.
    with denormals_as_zero():
        return ort.InferenceSession(
            model, options, providers=providers, disabled_optimizers=["MatMulAddFusion"]
        )


def _optimised(path: str | os.PathLike[str], cache: EngineCache, sides: Mapping[str, int]) -> bytes:
    """The graph as optimised for this processor and these lengths, from the cache or put there."""
    key = EngineKey(
        model=file_digest(path),
        builder=f"onnxruntime {ort.__version__}",
        device=processor(),
        precision="as exported",
        profile=json.dumps(sides, sort_keys=True) if sides else "any",
    )

    def build(target: str) -> None:
        options = _options(sides)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = target
        _load(os.fspath(path), options, [CPU])

    return cache.get_or_build(key, build)
