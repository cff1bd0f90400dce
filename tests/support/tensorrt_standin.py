"""TensorRT and the CUDA runtime without a GPU: engines that ONNX Runtime runs, every call checked.

Classes and methods exist as far as `tensorrt_signatures.json` lists them (read from the published bindings' own
signatures) and take the arguments that it names; a call that the real module would refuse is refused here.
"""

from __future__ import annotations

import ctypes
import json
import types
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort

SIGNATURES = json.loads(Path(__file__).with_name("tensorrt_signatures.json").read_text(encoding="utf-8"))


def _accepts(names: list[str], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    plain = [name.rstrip("=") for name in names]
    given = [*plain[: len(arguments)], *keywords]
    required = [name for name in names if not name.endswith("=")]
    return (
        len(arguments) <= len(plain)
        and set(required) <= set(given) <= set(plain)
        and len(given) == len(set(given))
    )


class Checked:
    """Every method call is checked against the signatures of the class it stands in for, and noted."""

    calls: list[str]

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        kind = type(self).__name__
        known = SIGNATURES["methods"].get(kind, {})
        if name.startswith("_") or not callable(value):
            if not name.startswith("_") and name in vars(type(self)):
                assert name in SIGNATURES["properties"].get(kind, ()), f"{kind} has no property {name}"
            return value
        assert name in known, f"{kind} has no method {name}"

        def checked(*arguments: Any, **keywords: Any) -> Any:
            fits = any(_accepts(names, arguments, keywords) for names in known[name])
            assert fits, f"{kind}.{name} takes {known[name]}, not {arguments}, {keywords}"
            Journal.calls.append(f"{kind}.{name}")
            return value(*arguments, **keywords)

        return checked


class Journal:
    """What was called, in order; and what is to go wrong."""

    calls: ClassVar[list[str]] = []
    fail: str = ""

    @classmethod
    def reset(cls) -> None:
        cls.calls, cls.fail = [], ""


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4


class IProgressMonitor:
    pass


class Network:
    def __init__(self, flags: int) -> None:
        assert flags == 1 << SIGNATURES["enums"]["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"]
        self.onnx = b""


class IOptimizationProfile(Checked):
    def __init__(self) -> None:
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        assert len(min) == len(opt) == len(max)
        assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True))
        self._shapes[input] = [list(min), list(opt), list(max)]


class ITimingCache(Checked):
    def serialize(self) -> bytes:
        return b"timings"


class IBuilderConfig(Checked):
    progress_monitor: Any = None

    def __init__(self) -> None:
        self._profiles: list[IOptimizationProfile] = []
        self._timings: ITimingCache | None = None

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        assert pool == "WORKSPACE"
        assert pool_size > 0

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return -1 if Journal.fail == "profile" else len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        assert serialized_timing_cache in (b"", b"timings")
        return ITimingCache()

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._timings = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        assert self._timings is not None
        return self._timings


class ParserError(Checked):
    def desc(self) -> str:
        return "No importer registered for op: NoSuchOperator"


class OnnxParser(Checked):
    def __init__(self, network: Network, logger: Any) -> None:
        self._network = network

    @property
    def num_errors(self) -> int:
        return 1 if Journal.fail == "parse" else 0

    def parse_from_file(self, model: str) -> bool:
        self._network.onnx = Path(model).read_bytes()
        return Journal.fail != "parse"

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class Builder(Checked):
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> Network:
        return Network(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: Network, config: IBuilderConfig) -> bytes | None:
        if Journal.fail == "memory":
            self._logger.log(ILogger.Severity.WARNING, "not an error")
            self._logger.log(ILogger.Severity.ERROR, "Requested 5 GB, but the device has 1 GB")
            return None
        monitor = config.progress_monitor
        monitor.phase_start("Tactics", None, 20)
        for step in range(1, 21):
            assert monitor.step_complete("Tactics", step)
        monitor.phase_finish("Tactics")
        header = json.dumps([profile._shapes for profile in config._profiles]).encode()
        return header + b"\n" + network.onnx


class IExecutionContext(Checked):
    def __init__(self, session: ort.InferenceSession, profiles: list[dict[str, Any]]) -> None:
        self._session, self._profiles = session, profiles
        self._profile: dict[str, Any] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._results: dict[str, Any] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = self._profiles[profile_index]
        return Journal.fail != "context profile"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None, "choose a profile first"
        low, _, high = self._profile[name]
        assert all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory in CudaRuntime.device, "an address of the GPU is wanted"
        self._addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        # Shapes are known once all inputs' are; the stand-in has to run the graph to tell.
        shapes = {i.name: np.zeros(self._shapes[i.name], _dtype(i)) for i in self._session.get_inputs()}
        (found,) = self._session.run([name], shapes)
        return tuple(found.shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 7
        if Journal.fail == "execute":
            return False
        inputs = {}
        for node in self._session.get_inputs():
            array = np.empty(self._shapes[node.name], _dtype(node))
            ctypes.memmove(array.ctypes.data, self._addresses[node.name], array.nbytes)
            inputs[node.name] = array
        for node, found in zip(self._session.get_outputs(), self._session.run(None, inputs), strict=True):
            assert CudaRuntime.device[self._addresses[node.name]] >= found.nbytes, "buffer too small"
            ctypes.memmove(self._addresses[node.name], np.ascontiguousarray(found).ctypes.data, found.nbytes)
        return True


class ICudaEngine(Checked):
    def __init__(self, engine: bytes) -> None:
        header, _, graph = engine.partition(b"\n")
        self._profiles = json.loads(header)
        self._session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def create_execution_context(self) -> IExecutionContext | None:
        if Journal.fail == "context":
            return None
        return IExecutionContext(self._session, self._profiles)


class Runtime(Checked):
    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, ILogger)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        return None if Journal.fail == "deserialise" else ICudaEngine(serialized_engine)


def _dtype(node: Any) -> Any:
    return {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}[node.type]


class Status(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815


class CudaRuntime:
    """`cuda.bindings.runtime` on the memory of the host; device and host addresses are told apart."""

    class cudaMemcpyKind(IntEnum):  # noqa: N801
        cudaMemcpyHostToDevice = 1  # noqa: N815
        cudaMemcpyDeviceToHost = 2  # noqa: N815

    device: ClassVar[dict[int, int]] = {}
    host: ClassVar[dict[int, int]] = {}
    kept: ClassVar[dict[int, Any]] = {}
    devices = 1
    name = b"NVIDIA Stand-in"

    @classmethod
    def cudaGetDeviceCount(cls) -> tuple[Status, int]:
        return Status.cudaSuccess, cls.devices

    @classmethod
    def cudaGetDeviceProperties(cls, device: int) -> tuple[Status, Any]:
        return Status.cudaSuccess, types.SimpleNamespace(name=cls.name, major=9, minor=0)

    @staticmethod
    def cudaStreamCreate() -> tuple[Status, int]:
        return Status.cudaSuccess, 7

    @staticmethod
    def cudaStreamSynchronize(stream: int) -> tuple[Status]:
        assert stream == 7
        return (Status.cudaSuccess,)

    @classmethod
    def cudaMalloc(cls, size: int) -> tuple[Status, int | None]:
        return cls._allocate(size, cls.device)

    @classmethod
    def cudaMallocHost(cls, size: int) -> tuple[Status, int | None]:
        return cls._allocate(size, cls.host)

    @classmethod
    def _allocate(cls, size: int, table: dict[int, int]) -> tuple[Status, int | None]:
        if Journal.fail == "allocate":
            return Status.cudaErrorMemoryAllocation, None
        memory = ctypes.create_string_buffer(size)
        address = ctypes.addressof(memory)
        cls.kept[address], table[address] = memory, size
        return Status.cudaSuccess, address

    @classmethod
    def cudaFree(cls, address: int) -> tuple[Status]:
        del cls.device[address], cls.kept[address]
        return (Status.cudaSuccess,)

    @classmethod
    def cudaFreeHost(cls, address: int) -> tuple[Status]:
        del cls.host[address], cls.kept[address]
        return (Status.cudaSuccess,)

    @classmethod
    def cudaMemcpyAsync(cls, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Status]:
        tables = (
            (cls.device, cls.host)
            if kind == cls.cudaMemcpyKind.cudaMemcpyHostToDevice
            else (cls.host, cls.device)
        )
        assert stream == 7
        assert size <= min(tables[0][target], tables[1][source])
        ctypes.memmove(target, source, size)
        return (Status.cudaSuccess,)


def modules() -> dict[str, types.ModuleType]:
    """What to put into ``sys.modules``."""
    tensorrt = types.ModuleType("tensorrt")
    for kind in (Builder, ILogger, IProgressMonitor, OnnxParser, Runtime):
        assert kind.__name__ in SIGNATURES["methods"], kind
        setattr(tensorrt, kind.__name__, kind)
    flags = SIGNATURES["enums"]["NetworkDefinitionCreationFlag"]
    vars(tensorrt).update(
        __version__=SIGNATURES["version"],
        NetworkDefinitionCreationFlag=types.SimpleNamespace(**flags),
        MemoryPoolType=types.SimpleNamespace(
            **{name: name for name in SIGNATURES["enums"]["MemoryPoolType"]}
        ),
    )
    cuda, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    runtime = types.ModuleType("cuda.bindings.runtime")
    vars(runtime).update(
        {name: getattr(CudaRuntime, name) for name in dir(CudaRuntime) if name.startswith("cuda")}
    )
    vars(bindings)["runtime"], vars(cuda)["bindings"] = runtime, bindings
    found = {"tensorrt": tensorrt, "cuda": cuda, "cuda.bindings": bindings, "cuda.bindings.runtime": runtime}
    for name, module in found.items():
        module.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]  # find_spec wants one
    return found
