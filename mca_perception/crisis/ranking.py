"""Per event, the most urgent reports seen, in a bounded heap."""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict

from mca_perception.crisis.posts import CrisisReport

__all__ = ["RankedReports"]

MAX_EVENTS = 1000
_Entry = tuple[float, int, CrisisReport]


class RankedReports:
    """Keeps the ``size`` most urgent reports of each event; thread-safe.

    Of two reports of one post, and of equal priority, the earlier ranks first. The event that was quiet the longest is
    forgotten when there are more than ``max_events``.
    """

    def __init__(self, size: int = 100, max_events: int = MAX_EVENTS) -> None:
        self.size, self.max_events = size, max_events
        self._events: OrderedDict[str, list[_Entry]] = OrderedDict()
        self._counter = 0
        self._lock = threading.Lock()

    def add(self, report: CrisisReport) -> None:
        """Rank a report within its event."""
        with self._lock:
            self._counter += 1
            heap = self._events.setdefault(report.event_id, [])
            self._events.move_to_end(report.event_id)
            # Among equals the heap lets go of the latest first.
            heapq.heappush(heap, (report.priority_score, -self._counter, report))
            if len(heap) > self.size:
                heapq.heappop(heap)
            if len(self._events) > self.max_events:
                self._events.popitem(last=False)

    def top(self, event_id: str, count: int | None = None) -> list[CrisisReport]:
        """Reports of an event, most urgent first; empty for an unknown event."""
        with self._lock:
            ranked = sorted(self._events.get(event_id, ()), key=lambda entry: entry[:2], reverse=True)
        return [report for _, _, report in ranked[:count]]

    def events(self) -> list[str]:
        """Events with reports, the latest active last."""
        with self._lock:
            return list(self._events)
