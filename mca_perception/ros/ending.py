"""A time limit for the end of a process whose middleware hangs.

Fast DDS 3.2 can wait for itself while a participant is deleted: the deleting thread holds a lock and spins until no
listener runs, and the listener that learns of another participant's end waits for that lock. rclpy holds the
interpreter's lock meanwhile, so no Python code can help; a timer of the kernel can.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mca_perception.ros.kernel_timers import EndTimer

__all__ = ["END_S", "ends_within"]

END_S = 5  # the middleware needs milliseconds


@contextmanager
def ends_within(seconds: float, code: int) -> Iterator[None]:
    """End the process with this exit code, at once and without further cleaning up, if the block takes longer.

    Args:
        seconds: more than 0.
        code: exit code, 0 to 255.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with EndTimer(code) as timer:
        timer.set(seconds)
        yield
