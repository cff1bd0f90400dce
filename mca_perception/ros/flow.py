"""When the source may send its next image: pace, and images that still wait for an answer."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["AnswerTracker", "Pacer"]


class Pacer:
    """Spaces images out by a rate, or by the times at which they were recorded.

    Example:
        >>> pacer = Pacer(rate_hz=10, clock=lambda: 0.0)
        >>> pacer.delay(None), pacer.delay(None)
        (0.0, 0.1)
    """

    def __init__(self, rate_hz: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a pacer.

        Args:
            rate_hz: images per second; 0 follows the recorded times.
            clock: seconds.
        """
        self._period = 1 / rate_hz if rate_hz > 0 else None
        self._clock = clock
        self._last_due: float | None = None
        self._last_time_ns: int | None = None

    def delay(self, time_ns: int | None) -> float:
        """Seconds to wait before the next image. A late image is sent at once and moves the ones after it.

        Args:
            time_ns: when it was recorded; ``None`` when unknown.
        """
        now = self._clock()
        step = self._period
        if step is None and time_ns is not None and self._last_time_ns is not None:
            step = max(0.0, (time_ns - self._last_time_ns) / 1e9)
        due = now if self._last_due is None else max(now, self._last_due + (step or 0.0))
        self._last_due, self._last_time_ns = due, time_ns
        return due - now


class AnswerTracker:
    """Images that were sent and not yet answered, known by their stamp."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._waiting: dict[int, float] = {}
        self.answered = 0
        self.unanswered = 0

    def sent(self, stamp_ns: int) -> None:
        """An image with this stamp went out."""
        self._waiting[stamp_ns] = self._clock()

    def answer(self, stamp_ns: int) -> None:
        """Objects with this stamp came in. Stamps of other sources are ignored.

        Images are processed in order: those sent before this one and still waiting have been dropped.
        """
        if self._waiting.pop(stamp_ns, None) is None:
            return
        self.answered += 1
        self._give_up([waiting for waiting in self._waiting if waiting < stamp_ns])

    def in_flight(self) -> int:
        """Images without an answer; those older than the time limit are given up and counted."""
        limit = self._clock() - self._timeout_s
        self._give_up([stamp for stamp, moment in self._waiting.items() if moment <= limit])
        return len(self._waiting)

    def _give_up(self, stamps: list[int]) -> None:
        for stamp in stamps:
            del self._waiting[stamp]
        self.unanswered += len(stamps)
