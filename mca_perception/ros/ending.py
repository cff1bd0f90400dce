"""A time limit for the end of a process whose middleware hangs.

Fast DDS 3.2 can wait for itself while a participant is deleted: the deleting thread holds a lock and spins until no
listener runs, and the listener that learns of another participant's end waits for that lock. rclpy holds the
interpreter's lock meanwhile, so no Python code can help; a timer of the C library can.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["END_S", "ends_within"]

END_S = 5  # the middleware needs milliseconds

_CLOCK_MONOTONIC, _SIGEV_THREAD = 1, 2


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


@contextmanager
def ends_within(seconds: int, code: int) -> Iterator[None]:
    """End the process with this exit code, at once and without further cleaning up, if the block takes longer.

    Where the C library has no such timers the block is not limited.

    Args:
        seconds: at least 1.
        code: exit code, 0 to 255.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        library = ctypes.CDLL(None, use_errno=True)
        create, arm, delete = library.timer_create, library.timer_settime, library.timer_delete
        function = ctypes.cast(library._exit, ctypes.c_void_p)
    except (AttributeError, OSError):
        yield
        return
    event = _Event(value=code, notify=_SIGEV_THREAD, function=function)
    timer = ctypes.c_void_p()
    made = create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) == 0
    if made:
        arm(timer, 0, ctypes.byref(_Times(first_s=seconds)), None)
    try:
        yield
    finally:
        if made:
            delete(timer)
