"""Graphs in ONNX Runtime, on the CPU or a GPU."""

from __future__ import annotations

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
from mca_perception.errors import BundleError

__all__ = ["CPU", "CUDA", "OnnxSession", "open_cpu", "open_cuda", "open_graph", "why_no_cpu", "why_no_cuda"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_DEFAULT_PROVIDERS = (CUDA, CPU)
_DTYPES = {"float": "float32", "float16": "float16", "double": "float64"}


class OnnxSession(GraphSession):
    """A graph in ONNX Runtime.

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
    ) -> None:
        """Load a graph.

        Args:
            path: the ``.onnx`` file.
            providers: execution providers, best first; by default CUDA where it is available, then CPU.
            intra_op_threads: threads of one operator; by default one per core.
            cache: keeps the graph as this runtime has optimised it for this processor; CPU only.

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
            model = os.fspath(path) if cache is None or chosen != [CPU] else _optimised(path, cache)
            if isinstance(model, bytes):
                options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            self._session = ort.InferenceSession(model, options, providers=chosen)
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common base of their own
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load {path}: {error}; export it again"
            ) from error
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.device = "CPU" if self.providers[0] == CPU else self.providers[0]
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph; see :meth:`.GraphSession.run`."""
        outputs = self._session.run(None, self._contiguous(inputs))
        return dict(zip(self.output_names, outputs, strict=True))


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


def _optimised(path: str | os.PathLike[str], cache: EngineCache) -> bytes:
    """The graph as optimised for this processor, from the cache or put there."""
    key = EngineKey(
        model=file_digest(path),
        builder=f"onnxruntime {ort.__version__}",
        device=processor(),
        precision="as exported",
        profile="any",
    )

    def build(target: str) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = target
        ort.InferenceSession(os.fspath(path), options, providers=[CPU])

    return cache.get_or_build(key, build)
