"""From arriving messages to frames that wait for the workers, and the workers themselves."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from sensor_msgs.msg import CompressedImage, Image

from mca_perception.ros.conversions import stamp_ns
from mca_perception.ros.frame_policy import FrameQueue, Item
from mca_perception.ros.statistics import Statistics

__all__ = ["NO_CONTAINER", "Container", "FrameWorkers", "Intake", "PendingFrame"]

DUPLICATE = "duplicate"
"""Cause of a drop: the same frame had already come in through the other transport."""

_REMEMBERED = 16

Result = TypeVar("Result")


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
        now_ns = self._now_ns()
        self._statistics.count_received(stamp_ns(message.header.stamp), now_ns)
        if self._is_duplicate(message):
            self._statistics.count_drop(DUPLICATE)
            return
        self._queue.put(PendingFrame(message, self._container(), now_ns, time.perf_counter()))

    def _is_duplicate(self, message: Image | CompressedImage) -> bool:
        """Whether the other transport has delivered this stamp. Drivers that do not stamp are not judged."""
        stamp = stamp_ns(message.header.stamp)
        kind = type(message)
        self._seen.setdefault(kind, deque(maxlen=_REMEMBERED)).append(stamp)
        return stamp != 0 and any(
            stamp in stamps for other, stamps in self._seen.items() if other is not kind
        )


class _Place(NamedTuple):
    """The place of a frame in the order of results: after one event, before the other."""

    before: threading.Event
    done: threading.Event


class FrameWorkers(Generic[Item, Result]):
    """Threads that work on queued frames, so that inference never blocks the executor.

    A frame leaves the queue when it is the worker's turn, so that the freshest one is worked on however long it took.
    They may work on several frames at once. What is done with the results happens in the order in which the frames left
    the queue, one after the other: a frame that is quicker than the one before it waits.
    """

    def __init__(
        self,
        queue: FrameQueue[Item],
        work: Callable[[Item], Result],
        deliver: Callable[[Item, Result], None],
        *,
        parallel: int = 1,
        turns: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Start the threads.

        Args:
            queue: where frames wait; the workers end when it is closed.
            work: makes something of a frame, on several threads at once; raises nothing.
            deliver: does something with the result, in order; raises nothing.
            parallel: frames that are worked on at the same time.
            turns: entered to take a frame and work on it, where several queues share a model.
        """
        self._queue = queue
        self._work = work
        self._deliver = deliver
        self._turns = turns if turns is not None else nullcontext()
        self._taking = threading.Lock()
        self._last = threading.Event()
        self._last.set()
        self._threads = [
            threading.Thread(target=self._run, name=f"perception-worker-{number}", daemon=True)
            for number in range(parallel)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while self._queue.wait():
            taken = None
            try:
                with self._turns:
                    taken = self._take()
                    if taken is None:  # another worker was quicker
                        continue
                    frame, place = taken
                    result = self._work(frame)
                place.before.wait()
                self._deliver(frame, result)
            finally:
                if taken is not None:
                    taken[1].done.set()

    def _take(self) -> tuple[Item, _Place] | None:
        """The next frame and its place; None when none waits."""
        with self._taking:
            frame = self._queue.get(timeout=0)
            if frame is None:
                return None
            place = _Place(self._last, threading.Event())
            self._last = place.done
            return frame, place

    def stop(self) -> None:
        """Discard waiting frames and return once those in progress are done."""
        self._queue.close()
        for thread in self._threads:
            thread.join()
