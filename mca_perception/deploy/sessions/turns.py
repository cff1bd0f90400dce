"""Turns: several threads that want the same things get them in the order in which they asked."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType

__all__ = ["Turns"]


class Turns:
    """A semaphore that serves in order of arrival. Those of ``threading`` may serve the same thread again and again.

    Example:
        >>> turns = Turns()
        >>> with turns:
        ...     pass
    """

    def __init__(self, places: int = 1) -> None:
        """All places are free.

        Args:
            places: threads that are let in at the same time.
        """
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._free = places

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1
