"""What every back end offers: run a graph on arrays, and say what it takes, gives and runs on."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.engine_cache import EngineCache
from mca_perception.deploy.manifest import TensorSpec

__all__ = ["Arrays", "GraphSession", "Session", "SessionOptions", "zeros"]

Arrays = dict[str, NDArray[Any]]
"""Arrays by the name of a graph's input or output."""

_log = logging.getLogger(__name__)


class Session(Protocol):
    """Runs one graph; may be called from several threads."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph on inputs by name and return its outputs by name."""
        ...


@dataclass(frozen=True)
class SessionOptions:
    """Settings of back ends; each takes those that mean something to it.

    Attributes:
        threads: of one run on a CPU; one per core when not given.
        parallel: runs that come at the same time, from several threads. OpenVINO must know; others take what comes.
        cache: where built engines and compiled graphs are kept; TensorRT always has one, the user's by default.
        build: let TensorRT build an engine that the cache lacks, which takes minutes.
        compiled: torch: compile the modules.
        providers: ``onnxruntime``: execution providers, best first; CUDA where it is available, then CPU, by default.
        url: host and port of the Triton server's gRPC endpoint.
        on_state: told what is being built, where that takes minutes; the log by default. Not part of what makes
            options equal.
    """

    threads: int | None = None
    parallel: int = 1
    cache: EngineCache | None = None
    build: bool = True
    compiled: bool = False
    providers: tuple[str, ...] = ()
    url: str = "localhost:8001"
    on_state: Callable[[str], None] = field(default=_log.info, compare=False)


class GraphSession(ABC):
    """One graph of a bundle, ready to run; the base of all back ends.

    Attributes:
        backend: name of the back end, as ``session=`` takes it.
        inputs: what the graph takes; dynamic sides are names.
        outputs: what it gives.
        device: what it runs on, in words.
    """

    backend: ClassVar[str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph; may be called from several threads.

        Args:
            inputs: one array per input name; need not be contiguous.

        Returns:
            One array per output name.

        Raises:
            ValueError: the names are not the graph's input names.
        """

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the graph's order."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the graph's order."""
        return tuple(spec.name for spec in self.outputs)

    def submit(self, inputs: Mapping[str, NDArray[Any]]) -> Future[Arrays]:
        """Start a run and return at once; the caller leaves the arrays alone until the result is there."""
        return self._worker.submit(self.run, inputs)

    def warm_up(self, shapes: Mapping[str, Sequence[int]]) -> float:
        """Run once on zeros of these shapes by input name, as memory is reserved on the first run of a shape.

        Returns:
            Milliseconds.
        """
        dtypes = {spec.name: spec.dtype for spec in self.inputs}
        started = time.perf_counter()
        self.run(zeros(shapes, dtypes))
        return 1000 * (time.perf_counter() - started)

    def close(self) -> None:
        """Release what the back end holds; the session is not used again."""
        if "_worker" in self.__dict__:
            self._worker.shutdown()

    @cached_property
    def _worker(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix=self.backend)

    def _contiguous(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """The inputs in the graph's order, contiguous; ValueError when the names are others."""
        if set(inputs) != set(self.input_names):
            raise ValueError(f"inputs are {sorted(inputs)}, the graph takes {sorted(self.input_names)}")
        return {name: np.ascontiguousarray(inputs[name]) for name in self.input_names}


def zeros(shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str]) -> Arrays:
    """Arrays of zeros by input name."""
    return {name: np.zeros(tuple(shape), dtypes[name]) for name, shape in shapes.items()}
