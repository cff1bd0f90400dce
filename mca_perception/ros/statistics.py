"""What a perception node counts: frames, drops by cause, rates and latencies."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Snapshot", "Statistics", "percentiles"]

_WINDOW = 200
_RECENT_S = 10.0


def percentiles(values: list[float]) -> dict[str, float]:
    """``p50``, ``p95`` and ``p99`` of the values; empty without values."""
    if not values:
        return {}
    levels = np.percentile(np.asarray(values, dtype=np.float64), [50, 95, 99])
    return {name: round(float(level), 3) for name, level in zip(("p50", "p95", "p99"), levels, strict=True)}


@dataclass(frozen=True)
class Snapshot:
    """The counts at one moment.

    Attributes:
        fps: results per second over the last seconds.
        latency_ms: percentiles from the image's stamp to the publication of its result, over the last frames.
        processing_ms: percentiles of the processing alone.
        last_error: the latest reason for a drop or failure; empty when there was none.
        error_is_recent: whether that was within the last seconds.
    """

    received: int
    processed: int
    drops: dict[str, int]
    fps: float
    latency_ms: dict[str, float]
    processing_ms: dict[str, float]
    last_error: str
    error_is_recent: bool


class Statistics:
    """Counters shared by the executor's thread and the worker's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._received = 0
        self._processed = 0
        self._drops: Counter[str] = Counter()
        self._finished: deque[float] = deque(maxlen=_WINDOW)
        self._latency: deque[float] = deque(maxlen=_WINDOW)
        self._processing: deque[float] = deque(maxlen=_WINDOW)
        self._last_error = ""
        self._error_time = float("-inf")

    def count_received(self) -> None:
        """A frame came in."""
        with self._lock:
            self._received += 1

    def count_processed(self, *, latency_ms: float, processing_ms: float) -> None:
        """A result went out."""
        with self._lock:
            self._processed += 1
            self._finished.append(self._clock())
            self._latency.append(latency_ms)
            self._processing.append(processing_ms)

    def count_drop(self, cause: str, error: str = "") -> None:
        """A frame was dropped; ``error`` tells why when the frame was at fault."""
        with self._lock:
            self._drops[cause] += 1
        if error:
            self.note_error(error)

    def note_error(self, error: str) -> None:
        """Remember an error for the diagnostics."""
        with self._lock:
            self._last_error = error
            self._error_time = self._clock()

    def snapshot(self) -> Snapshot:
        """The counts now."""
        with self._lock:
            now = self._clock()
            recent = [moment for moment in self._finished if now - moment <= _RECENT_S]
            return Snapshot(
                received=self._received,
                processed=self._processed,
                drops=dict(self._drops),
                fps=round((len(recent) - 1) / max(now - recent[0], 1e-9), 2) if len(recent) > 1 else 0.0,
                latency_ms=percentiles(list(self._latency)),
                processing_ms=percentiles(list(self._processing)),
                last_error=self._last_error,
                error_is_recent=now - self._error_time <= _RECENT_S,
            )
