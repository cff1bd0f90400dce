"""Messages of several topics that belong to the same image: found by the stamp that all of them carry on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from mca_perception.ros.conversions import stamp_ns

__all__ = ["INCOMPLETE", "UNSTAMPED", "StampMatcher"]

INCOMPLETE = "incomplete"
"""Cause of a drop: the image of these objects, or their mask, did not come or came too early to be kept."""

UNSTAMPED = "unstamped"
"""Cause of a drop: without a stamp nobody knows which image the objects are of."""

_KEPT = 16


class StampMatcher:
    """Waits until a message of every kind has come for a stamp. Used on the executor's thread alone.

    The first kind is the one that is counted: each of its messages is either handed over or dropped with a cause.
    """

    def __init__(
        self,
        kinds: tuple[str, ...],
        *,
        on_match: Callable[[dict[str, Any]], None],
        on_drop: Callable[[str], None],
    ) -> None:
        """Start with nothing.

        Args:
            kinds: names of the kinds.
            on_match: takes the messages of a stamp by kind.
            on_drop: told the cause.
        """
        self._counted = kinds[0]
        self._waiting: dict[str, OrderedDict[int, Any]] = {kind: OrderedDict() for kind in kinds}
        self._on_match = on_match
        self._on_drop = on_drop

    def receive(self, kind: str, message: Any) -> None:
        """Take a message with a header. Of two with one stamp the later one counts."""
        stamp = stamp_ns(message.header.stamp)
        if not stamp:
            if kind == self._counted:
                self._on_drop(UNSTAMPED)
            return
        waiting = self._waiting[kind]
        if kind == self._counted and stamp in waiting:
            self._on_drop(INCOMPLETE)
        waiting[stamp] = message
        if all(stamp in messages for messages in self._waiting.values()):
            self._on_match({name: messages.pop(stamp) for name, messages in self._waiting.items()})
        while len(waiting) > _KEPT:
            waiting.popitem(last=False)
            if kind == self._counted:
                self._on_drop(INCOMPLETE)

    def close(self) -> None:
        """Drop what waits."""
        for _ in self._waiting[self._counted]:
            self._on_drop(INCOMPLETE)
        for messages in self._waiting.values():
            messages.clear()
