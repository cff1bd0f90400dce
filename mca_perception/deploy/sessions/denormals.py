"""Numbers below float32's normal range counted as zero, in the calling thread, while a graph runs.

A softmax leaves many of them where attention is sharp, and processors take some hundred times as long to multiply one.
ONNX Runtime can switch them off in its own threads, but half of the work is done by the thread that calls it.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SUPPORTED", "denormals_as_zero"]

_FLUSH_TO_ZERO_AND_DENORMALS_ARE_ZERO = 0x8040


class _Environment(ctypes.Structure):
    """``fenv_t`` of the C library on x86-64."""

    _fields_ = (("x87", ctypes.c_ubyte * 28), ("mxcsr", ctypes.c_uint32))


def _load() -> ctypes.CDLL | None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    try:
        return ctypes.CDLL("libm.so.6")
    except OSError:
        return None


_library = _load()

SUPPORTED = _library is not None
"""Whether :func:`denormals_as_zero` does anything: on Linux and x86-64. ARM's vector units need no help."""


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Count numbers below about 1e-38 as zero in this thread; what was set before comes back at the end."""
    if _library is None:
        yield
        return
    before = _Environment()
    _library.fegetenv(ctypes.byref(before))
    during = _Environment.from_buffer_copy(before)
    during.mxcsr |= _FLUSH_TO_ZERO_AND_DENORMALS_ARE_ZERO
    _library.fesetenv(ctypes.byref(during))
    try:
        yield
    finally:
        _library.fesetenv(ctypes.byref(before))
