"""Ends a process that hangs, so that its launch starts it again.

The process itself sets a timer of the kernel anew as long as it runs callbacks. This works under ``ros2 launch`` as
under ``mca up``, for one node as for several in a container, and nothing that hangs can hold it up.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mca_perception.ros.kernel_timers import EndTimer

__all__ = ["SHORTEST_S", "Watchdog", "may_take_long", "watching"]

SHORTEST_S = 0.5
"""An executor without work turns every 0.1 s."""

_running: list[Watchdog] = []


class Watchdog:
    """Ends the process by SIGKILL, even one that is stopped, when it was not fed for too long."""

    def __init__(self, timer: EndTimer, limit_s: float) -> None:
        self._timer = timer
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._pauses = 0

    def feed(self) -> None:
        """The process is alive."""
        with self._lock:
            self._timer.set(0 if self._pauses else self._limit_s)

    def pause(self, change: int) -> None:
        """Do not end the process while there are pauses: 1 for one more, -1 for one less."""
        with self._lock:
            self._pauses += change
        self.feed()


@contextmanager
def watching(limit_s: float) -> Iterator[Watchdog]:
    """Watch this process while the block runs.

    Args:
        limit_s: seconds between two feedings, at least :data:`SHORTEST_S`; 0 never ends it.
    """
    with EndTimer() as timer:
        watchdog = Watchdog(timer, max(limit_s, SHORTEST_S) if limit_s else 0.0)
        watchdog.feed()
        _running.append(watchdog)
        try:
            yield watchdog
        finally:
            _running.remove(watchdog)


@contextmanager
def may_take_long() -> Iterator[None]:
    """A block, on any thread, that may keep the process from feeding: loading a model, building an engine."""
    watchdogs = list(_running)
    for watchdog in watchdogs:
        watchdog.pause(1)
    try:
        yield
    finally:
        for watchdog in watchdogs:
            watchdog.pause(-1)
