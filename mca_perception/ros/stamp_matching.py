"""Messages of several topics that belong to the same image: found by the stamp that all of them carry on."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mca_perception.ros.frame_policy import DEACTIVATED

__all__ = ["INCOMPLETE", "MAX_BYTES", "OVERTAKEN", "UNSTAMPED", "StampMatcher"]

INCOMPLETE = "incomplete"
"""Cause of a drop: the image of these objects, or their mask, did not come or came too early to be kept."""

UNSTAMPED = "unstamped"
"""Cause of a drop: without a stamp nobody knows which image the objects are of."""

MAX_BYTES = 1 << 30
"""Most that waits: the images of 2.4 s from a camera of 2448x2048 pixels in rgb8 at 30 Hz."""

OVERTAKEN = 16
"""Messages that are kept although a later one has found its partners: whoever segments may change the order."""


class _Waiting(NamedTuple):
    item: Any
    size: int
    since: float


class StampMatcher:
    """Waits until a message of every kind has come for a stamp. Used on the executor's thread alone.

    The first kind is the one that is counted: each of its messages is either handed over or dropped with a cause.

    Images come long before their objects, and most of them for nothing when segmentation is slower than the camera. So
    they wait as long as segmentation may take, but within :data:`MAX_BYTES`, and are let go once a later one has found
    its objects.
    """

    def __init__(
        self,
        patience_s: Mapping[str, float],
        *,
        on_match: Callable[[dict[str, Any]], None],
        on_drop: Callable[[str, str], None],
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with nothing.

        Args:
            patience_s: seconds that a message of each kind waits for those of the others.
            on_match: takes the items of a stamp by kind.
            on_drop: told cause and reason.
            max_bytes: most that waits; the oldest of the kind that has most go first.
            clock: monotonic seconds.
        """
        self._patience_s = dict(patience_s)
        self._counted = next(iter(self._patience_s))
        self._waiting: dict[str, OrderedDict[int, _Waiting]] = {kind: OrderedDict() for kind in patience_s}
        self._bytes = dict.fromkeys(self._patience_s, 0)
        self._crowded_out = dict.fromkeys(self._patience_s, 0)
        self._on_match = on_match
        self._on_drop = on_drop
        self._max_bytes = max_bytes
        self._clock = clock

    def receive(self, kind: str, stamp: int, item: Any, size: int) -> None:
        """Take a message. Of two with one stamp the later one counts.

        Args:
            kind: of the message.
            stamp: of its image, nanoseconds.
            item: what is handed over.
            size: bytes that it takes.
        """
        if not stamp:
            if kind == self._counted:
                self._on_drop(
                    UNSTAMPED, f"{kind} without a stamp fit no image; the camera has to stamp its images"
                )
            return
        if stamp in self._waiting[kind]:
            self._let_go(kind, stamp, "others with the same stamp came")
        self._waiting[kind][stamp] = _Waiting(item, size, self._clock())
        self._bytes[kind] += size
        if all(stamp in waiting for waiting in self._waiting.values()):
            self._overtake(stamp)
            self._on_match({name: self._take(name, stamp).item for name in self._waiting})
        self.expire()

    def expire(self) -> None:
        """Let go of what has waited too long, or has no room."""
        now = self._clock()
        for kind, patience in self._patience_s.items():
            waiting = self._waiting[kind]
            while waiting and now - next(iter(waiting.values())).since > patience:
                self._let_go(kind, next(iter(waiting)))
        while sum(self._bytes.values()) > self._max_bytes:
            kind = max(self._bytes, key=self._bytes.__getitem__)
            self._crowded_out[kind] += 1
            self._let_go(kind, next(iter(self._waiting[kind])))

    def close(self) -> None:
        """Drop what waits."""
        for _ in self._waiting[self._counted]:
            self._on_drop(DEACTIVATED, "")
        for kind, waiting in self._waiting.items():
            waiting.clear()
            self._bytes[kind] = 0

    def _overtake(self, stamp: int) -> None:
        """Let go of what came before a message that has found its partners, but for the last ones."""
        for kind, waiting in self._waiting.items():
            stamps = list(waiting)
            for older in stamps[: max(0, stamps.index(stamp) - OVERTAKEN)]:
                self._let_go(kind, older)

    def _take(self, kind: str, stamp: int) -> _Waiting:
        taken = self._waiting[kind].pop(stamp)
        self._bytes[kind] -= taken.size
        return taken

    def _let_go(self, kind: str, stamp: int, reason: str = "") -> None:
        self._take(kind, stamp)
        if kind == self._counted:
            self._on_drop(INCOMPLETE, reason or self._lack(stamp))

    def _lack(self, stamp: int) -> str:
        """Why nothing could be made of a counted message."""
        missing = [
            kind for kind, waiting in self._waiting.items() if stamp not in waiting and kind != self._counted
        ]
        reason = f"their {' and '.join(missing)} did not come"
        for kind in missing:
            if count := self._crowded_out[kind]:
                reason += (
                    f", or went before them: {count} times {kind} had no room within {self._max_bytes >> 20} MiB; "
                    "send smaller ones, compressed ones or fewer"
                )
        return reason
