"""GPU memory, streams and copies through NVIDIA's CUDA bindings for Python."""

from __future__ import annotations

import ctypes
from typing import Any

from numpy.typing import NDArray

from mca_perception.errors import BundleError

__all__ = ["Buffer", "Cuda", "gpu_memory"]


class Cuda:
    """The CUDA runtime, every call checked.

    Attributes:
        device: name and compute capability of the GPU.
    """

    def __init__(self) -> None:
        """Use the first GPU.

        Raises:
            BundleError: there is none, or its driver does not work.
        """
        from cuda.bindings import runtime

        self._runtime = runtime
        if not self.call("cudaGetDeviceCount"):
            raise BundleError("CUDA sees no GPU; check nvidia-smi, or choose onnxruntime-cpu")
        properties = self.call("cudaGetDeviceProperties", 0)
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        name = name.rstrip("\0")
        self.device = f"{name}, compute capability {properties.major}.{properties.minor}"

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; gives its result.

        Raises:
            BundleError: it failed.
        """
        status, *results = getattr(self._runtime, name)(*arguments)
        if int(status) != 0:
            raise BundleError(
                f"{name} failed with {getattr(status, 'name', status)}; check the driver with nvidia-smi, free GPU "
                "memory, or choose onnxruntime-cpu"
            )
        return results[0] if results else None

    def stream(self) -> int:
        """A new stream, as the number that TensorRT takes."""
        return int(self.call("cudaStreamCreate"))

    def synchronise(self, stream: int) -> None:
        """Wait for a stream."""
        self.call("cudaStreamSynchronize", stream)

    def copy(self, target: int, source: int, size: int, kind: str, stream: int) -> None:
        """Start a copy; ``kind`` is the name of a ``cudaMemcpyKind``."""
        self.call(
            "cudaMemcpyAsync", target, source, size, getattr(self._runtime.cudaMemcpyKind, kind), stream
        )


class Buffer:
    """GPU memory with as much page-locked memory of the host, which copies need to be asynchronous.

    Attributes:
        size: bytes.
        address: on the GPU.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.size = max(size, 1)
        self._cuda = cuda
        self.address = int(cuda.call("cudaMalloc", self.size))
        self._host = int(cuda.call("cudaMallocHost", self.size))

    def upload(self, array: NDArray[Any], stream: int) -> None:
        """Start to copy an array to the GPU; it may be changed at once."""
        ctypes.memmove(self._host, array.ctypes.data, array.nbytes)
        self._cuda.copy(self.address, self._host, array.nbytes, "cudaMemcpyHostToDevice", stream)

    def download(self, array: NDArray[Any], stream: int) -> None:
        """Start to copy as much as an array holds from the GPU; :meth:`copy_to` after synchronising."""
        self._cuda.copy(self._host, self.address, array.nbytes, "cudaMemcpyDeviceToHost", stream)

    def copy_to(self, array: NDArray[Any]) -> None:
        """Copy what was downloaded into an array."""
        assert array.flags.c_contiguous
        ctypes.memmove(array.ctypes.data, self._host, array.nbytes)

    def free(self) -> None:
        """Give the memory back."""
        self._cuda.call("cudaFree", self.address)
        self._cuda.call("cudaFreeHost", self._host)
        self.address = self._host = 0


def gpu_memory() -> tuple[int, int] | None:
    """Bytes in use, by whatever process, and bytes in all of the first GPU that CUDA shows to this process.

    Asks the driver itself, which is there whatever runs the graphs. Memory of its own this takes only in a process that
    does not use the GPU yet.

    Returns:
        Used and total bytes; None where there is no driver or GPU, or it does not tell.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        if driver.cuCtxPushCurrent_v2(context):
            return None
        failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)
    return None if failed else (total.value - free.value, total.value)
