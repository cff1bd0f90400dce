"""Where frames wait for the worker, and which one is dropped when they come faster than it works.

``freshest`` is for cameras: a robot wants the newest view, so a waiting frame gives way to a newer one.
Reading a camera through a queue would only show the past. ``every_frame`` is for files and bags: frames wait
in order, and only a full queue refuses further ones. Both count what they drop, by cause.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["DEACTIVATED", "EVERY_FRAME", "FRESHEST", "QUEUE_FULL", "SUPERSEDED", "FrameQueue", "Item"]

FRESHEST = "freshest"
EVERY_FRAME = "every_frame"

SUPERSEDED = "superseded"
"""Cause of a drop: a newer frame came before this one was looked at."""

QUEUE_FULL = "queue_full"
"""Cause of a drop: the queue was full when this frame came."""

DEACTIVATED = "deactivated"
"""Cause of a drop: results were no longer wanted."""

Item = TypeVar("Item")


class FrameQueue(Generic[Item]):
    """A bounded queue between the executor's thread and the worker's.

    Example:
        >>> dropped = []
        >>> queue = FrameQueue("freshest", on_drop=dropped.append)
        >>> queue.put("old"), queue.put("new"), queue.get(timeout=0)
        (None, None, 'new')
        >>> dropped
        ['superseded']
    """

    def __init__(self, policy: str, *, depth: int = 1, on_drop: Callable[[str], None]) -> None:
        """Create an empty queue.

        Args:
            policy: ``freshest`` (holds one frame) or ``every_frame`` (holds ``depth``).
            depth: capacity of ``every_frame``.
            on_drop: called with the cause of every drop, in the thread that calls ``put`` or ``close``.

        Raises:
            ValueError: the policy has another name, or ``depth`` is not positive.
        """
        if policy not in (FRESHEST, EVERY_FRAME):
            raise ValueError(f"frame policy is {policy!r}; choose {FRESHEST!r} or {EVERY_FRAME!r}")
        if depth < 1:
            raise ValueError(f"queue depth is {depth}; it must be at least 1")
        self.policy = policy
        self._capacity = 1 if policy == FRESHEST else depth
        self._on_drop = on_drop
        self._frames: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, frame: Item) -> None:
        """Add a frame; does not wait for room. Dropped once the queue is closed."""
        cause = None
        with self._changed:
            if self._closed:
                cause = DEACTIVATED
            elif len(self._frames) >= self._capacity:
                cause = SUPERSEDED if self.policy == FRESHEST else QUEUE_FULL
                if cause == SUPERSEDED:
                    self._frames.popleft()
            if cause in (None, SUPERSEDED):
                self._frames.append(frame)
                self._changed.notify()
        if cause:
            self._on_drop(cause)
        # Lets go of the interpreter: the worker starts now, not once the executor has finished its round (0.7 ms).
        time.sleep(0)

    def wait(self) -> bool:
        """Wait until a frame is there; False once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._closed)
            return not self._closed

    def get(self, timeout: float | None = None) -> Item | None:
        """Take the next frame.

        Args:
            timeout: seconds to wait; ``None`` waits until a frame comes or the queue is closed.

        Returns:
            The frame, or ``None`` after the timeout or once the queue is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._closed, timeout)
            return self._frames.popleft() if self._frames and not self._closed else None

    def close(self) -> None:
        """Wake all waiting threads; waiting frames are dropped."""
        with self._changed:
            self._closed = True
            waiting = len(self._frames)
            self._frames.clear()
            self._changed.notify_all()
        for _ in range(waiting):
            self._on_drop(DEACTIVATED)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def __len__(self) -> int:
        return len(self._frames)
