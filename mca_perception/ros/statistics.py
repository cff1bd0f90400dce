"""What a perception node counts: frames, drops by cause, rates and latencies."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["JUMPED_BACK", "ZERO", "Snapshot", "Statistics", "percentiles"]

_WINDOW = 200
_RECENT_S = 10.0
_SERIES = ("latency", "processing", "queue", "cyclic")

ZERO = "zero"
"""The camera does not stamp its images."""

JUMPED_BACK = "jumped_back"
"""An image's stamp was older than that of the image before: a bag that starts again, or a clock that was set."""


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
        input_fps: images per second over the last seconds, dropped ones included.
        stamp_age_ms: age of the newest image's stamp when the image came; NaN before the first one and for stamps of 0.
        latency_ms: percentiles from the image's stamp to the publication of its result, over the last frames.
        processing_ms: percentiles of the processing alone.
        queue_ms: percentiles of the waiting time in the node.
        cyclic_ms: percentiles of the time from one result to the next.
        steps_ms: median of each step of the processing.
        silent_s: seconds since the last image; NaN before the first one.
        stalled_s: seconds that frames have waited, or been in progress, without a result; 0 when there is none.
        odd_stamps: images whose stamp was ``zero`` or ``jumped_back``.
        last_error: why the last transition failed, else the latest reason for a drop; empty when there was none.
        error_is_recent: whether something was dropped or failed within the last seconds, transitions aside.
        transition_error: why the last transition failed; empty when it succeeded.
    """

    received: int
    processed: int
    drops: dict[str, int]
    fps: float
    latency_ms: dict[str, float]
    processing_ms: dict[str, float]
    last_error: str
    error_is_recent: bool
    queue_ms: dict[str, float] = field(default_factory=dict)
    cyclic_ms: dict[str, float] = field(default_factory=dict)
    steps_ms: dict[str, float] = field(default_factory=dict)
    silent_s: float = float("nan")
    odd_stamps: dict[str, int] = field(default_factory=dict)
    input_fps: float = 0.0
    stalled_s: float = 0.0
    stamp_age_ms: float = float("nan")
    transition_error: str = ""


class Statistics:
    """Counters shared by the executor's thread and the worker's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._received = 0
        self._processed = 0
        self._drops: Counter[str] = Counter()
        self._finished: deque[float] = deque(maxlen=_WINDOW)
        self._arrivals: deque[float] = deque(maxlen=_WINDOW)
        self._series: dict[str, deque[float]] = {}
        self._steps: dict[str, deque[float]] = {}
        self._arrived = float("nan")
        self._busy_since: float | None = None
        self._stamp = 0
        self._stamp_age_ms = float("nan")
        self._odd_stamps: Counter[str] = Counter()
        self._last_error = ""
        self._transition_error = ""
        self._error_time = float("-inf")

    def count_received(self, stamp_ns: int | None = None, now_ns: int | None = None) -> None:
        """A frame came in; ``stamp_ns`` is the stamp of its header, ``now_ns`` the node's clock."""
        with self._lock:
            self._received += 1
            self._arrived = self._clock()
            self._arrivals.append(self._arrived)
            if self._busy_since is None:
                self._busy_since = self._arrived
            self._stamp_age_ms = (
                (now_ns - stamp_ns) / 1e6 if stamp_ns and now_ns is not None else float("nan")
            )
            if stamp_ns is not None:
                if not stamp_ns:
                    self._odd_stamps[ZERO] += 1
                elif stamp_ns < self._stamp:
                    self._odd_stamps[JUMPED_BACK] += 1
                self._stamp = stamp_ns

    def count_processed(
        self,
        *,
        latency_ms: float,
        processing_ms: float,
        queue_ms: float = 0.0,
        steps_ms: Mapping[str, float] | None = None,
    ) -> float:
        """A result went out.

        Returns:
            Milliseconds since the one before; NaN for the first.
        """
        with self._lock:
            now = self._clock()
            cyclic = (now - self._finished[-1]) * 1e3 if self._finished else float("nan")
            self._finished.append(now)
            self._processed += 1
            self._busy_since = now if self._has_work() else None
            figures = {
                "latency": latency_ms,
                "processing": processing_ms,
                "queue": queue_ms,
                "cyclic": cyclic,
            }
            for name, value in figures.items():
                if math.isfinite(value):
                    self._series.setdefault(name, deque(maxlen=_WINDOW)).append(value)
            for name, value in (steps_ms or {}).items():
                self._steps.setdefault(name, deque(maxlen=_WINDOW)).append(value)
            return cyclic

    def count_drop(self, cause: str, error: str = "") -> None:
        """A frame was dropped; ``error`` tells why when the frame was at fault."""
        with self._lock:
            self._drops[cause] += 1
            if not self._has_work():
                self._busy_since = None
        if error:
            self.note_error(error)

    def _has_work(self) -> bool:
        return self._received > self._processed + self._drops.total()

    def note_error(self, error: str) -> None:
        """Remember an error for the diagnostics."""
        with self._lock:
            self._last_error = error
            self._error_time = self._clock()

    def note_transition(self, error: str) -> None:
        """Remember why a transition of the node failed; empty when one has begun or succeeded."""
        with self._lock:
            self._transition_error = error

    def snapshot(self) -> Snapshot:
        """The counts now."""
        with self._lock:
            now = self._clock()
            return Snapshot(
                received=self._received,
                processed=self._processed,
                drops=dict(self._drops),
                fps=_rate(self._finished, now),
                input_fps=_rate(self._arrivals, now),
                stamp_age_ms=self._stamp_age_ms,
                last_error=self._transition_error or self._last_error,
                transition_error=self._transition_error,
                error_is_recent=now - self._error_time <= _RECENT_S,
                **{f"{name}_ms": percentiles(list(self._series.get(name, ()))) for name in _SERIES},
                steps_ms={name: round(float(np.median(values)), 3) for name, values in self._steps.items()},
                silent_s=now - self._arrived,
                stalled_s=0.0 if self._busy_since is None else now - self._busy_since,
                odd_stamps=dict(self._odd_stamps),
            )


def _rate(moments: Iterable[float], now: float) -> float:
    """Events per second over the last seconds."""
    recent = [moment for moment in moments if now - moment <= _RECENT_S]
    return round((len(recent) - 1) / max(now - recent[0], 1e-9), 2) if len(recent) > 1 else 0.0
