"""Timers of the kernel that end this process, whatever holds the interpreter's lock."""

from __future__ import annotations

import ctypes
import signal
from types import TracebackType

__all__ = ["EndTimer"]

_CLOCK_MONOTONIC, _SIGEV_SIGNAL, _SIGEV_THREAD = 1, 0, 2


class _Event(ctypes.Structure):
    """``struct sigevent`` of Linux on 64-bit machines."""

    _fields_ = (
        ("value", ctypes.c_int64),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("unused", ctypes.c_byte * 40),
    )


class _Times(ctypes.Structure):
    """``struct itimerspec``: interval and first expiration, each in seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


class EndTimer:
    """Ends the process, at once and without cleaning up. Where the C library has no such timers it does nothing."""

    def __init__(self, code: int | None = None) -> None:
        """Make a timer that is not set.

        Args:
            code: exit code, 0 to 255; without one the process ends by SIGKILL, even while it is stopped.
        """
        self._timer: ctypes.c_void_p | None = None
        try:
            self._library = ctypes.CDLL(None)
            create, leave = self._library.timer_create, self._library._exit
        except (AttributeError, OSError):
            return
        if code is None:
            event = _Event(signal=signal.SIGKILL, notify=_SIGEV_SIGNAL)
        else:
            event = _Event(value=code, notify=_SIGEV_THREAD, function=ctypes.cast(leave, ctypes.c_void_p))
        timer = ctypes.c_void_p()
        if create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) == 0:
            self._timer = timer

    def set(self, seconds: float) -> None:
        """End the process after so many seconds from now; 0 for never."""
        if self._timer is not None:
            whole = int(seconds)
            times = _Times(first_s=whole, first_ns=int((seconds - whole) * 1e9))
            self._library.timer_settime(self._timer, 0, ctypes.byref(times), None)

    def __enter__(self) -> EndTimer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._library.timer_delete(self._timer)
            self._timer = None
