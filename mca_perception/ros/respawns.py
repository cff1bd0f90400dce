"""Which ended node is started again: one rule for ``mca up`` and for the launch files."""

from __future__ import annotations

import time
from collections.abc import Callable

from mca_perception.ros.node_descriptions import NodeDescription

__all__ = ["MAX_RESPAWNS", "RESPAWN_WINDOW_S", "Respawns"]

MAX_RESPAWNS = 5
"""A node that crashes more often within :data:`RESPAWN_WINDOW_S` is given up."""

RESPAWN_WINDOW_S = 60.0


class Respawns:
    """Counts how often one node was started again."""

    def __init__(self, node: NodeDescription, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin to count.

        Args:
            node: the node.
            clock: monotonic seconds.
        """
        self._node = node
        self._clock = clock
        self._moments: list[float] = []

    def allow(self, code: int) -> bool:
        """Whether the node is started again; it then counts as done.

        Args:
            code: its exit code, minus the signal's number when a signal ended it. Only such an end is a crash; an exit
                code of its own is an answer, which would come again.
        """
        now = self._clock()
        self._moments = [moment for moment in self._moments if now - moment < RESPAWN_WINDOW_S]
        if not self._node.respawn or code >= 0 or len(self._moments) >= MAX_RESPAWNS:
            return False
        self._moments.append(now)
        return True
