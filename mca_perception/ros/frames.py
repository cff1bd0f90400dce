"""From arriving messages to frames that wait for the worker, and the worker itself."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from sensor_msgs.msg import CompressedImage, Image

from mca_perception.ros.conversions import stamp_ns
from mca_perception.ros.frame_policy import FrameQueue, Item
from mca_perception.ros.statistics import Statistics

__all__ = ["NO_CONTAINER", "Container", "FrameWorker", "Intake", "PendingFrame"]

DUPLICATE = "duplicate"
"""Cause of a drop: the same frame had already come in through the other transport."""

_REMEMBERED = 16


@dataclass(frozen=True)
class Container:
    """The container in view.

    Attributes:
        container_id: its name; empty for none.
        product_ids: products in it; ``None`` when they are not known, and all products are allowed.
        unknown: how many of them the gallery does not hold.
    """

    container_id: str = ""
    product_ids: tuple[str, ...] | None = None
    unknown: int = 0


NO_CONTAINER = Container()


@dataclass(frozen=True)
class PendingFrame:
    """An image message on its way to the worker.

    Attributes:
        container: the container at the time of arrival.
        received_ns: arrival, node clock.
        arrived: arrival, monotonic seconds.
    """

    message: Image | CompressedImage
    container: Container
    received_ns: int
    arrived: float


class Intake:
    """Receives messages on the executor's thread: counts them, remembers when they came, and queues them."""

    def __init__(
        self,
        queue: FrameQueue[PendingFrame],
        statistics: Statistics,
        *,
        container: Callable[[], Container],
        now_ns: Callable[[], int],
    ) -> None:
        self._queue = queue
        self._statistics = statistics
        self._container = container
        self._now_ns = now_ns
        self._seen: dict[type, deque[int]] = {}

    def receive(self, message: Image | CompressedImage) -> None:
        """Take one message."""
        self._statistics.count_received(stamp_ns(message.header.stamp))
        if self._is_duplicate(message):
            self._statistics.count_drop(DUPLICATE)
            return
        self._queue.put(PendingFrame(message, self._container(), self._now_ns(), time.perf_counter()))

    def _is_duplicate(self, message: Image | CompressedImage) -> bool:
        """Whether the other transport has delivered this stamp. Drivers that do not stamp are not judged."""
        stamp = stamp_ns(message.header.stamp)
        kind = type(message)
        self._seen.setdefault(kind, deque(maxlen=_REMEMBERED)).append(stamp)
        return stamp != 0 and any(
            stamp in stamps for other, stamps in self._seen.items() if other is not kind
        )


class FrameWorker(Generic[Item]):
    """One thread that handles queued frames, so that inference never blocks the executor."""

    def __init__(self, queue: FrameQueue[Item], handle: Callable[[Item], None]) -> None:
        self._queue = queue
        self._handle = handle
        self._thread = threading.Thread(target=self._run, name="perception-worker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (frame := self._queue.get()) is not None:
            self._handle(frame)

    def stop(self) -> None:
        """Discard waiting frames and return once the frame in progress is done."""
        self._queue.close()
        self._thread.join()
