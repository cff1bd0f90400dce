"""Notices nodes that hang: they exist, but say nothing on ``/diagnostics`` any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from mca_perception.ros.node_descriptions import NodeDescription

__all__ = ["Heartbeats", "heartbeat_watch"]

_POLL_S = 0.5


class Heartbeats:
    """When each node was heard last. A node that was never heard is starting, not hanging."""

    def __init__(
        self, limits_s: dict[str, float], on_silence: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        """Watch nodes.

        Args:
            limits_s: seconds of silence by full name of the node.
            on_silence: called with the full name, once per silence.
            clock: monotonic seconds.
        """
        self._limits = limits_s
        self._on_silence = on_silence
        self._clock = clock
        self._heard: dict[str, float] = {}

    def hear(self, name: str) -> bool:
        """A node said something; returns whether it is one to watch that had not been heard yet."""
        if name not in self._limits:
            return False
        first = name not in self._heard
        self._heard[name] = self._clock()
        return first

    def check(self) -> None:
        """Report the nodes that have been silent for too long."""
        now = self._clock()
        for name in [name for name, moment in self._heard.items() if now - moment > self._limits[name]]:
            del self._heard[name]
            self._on_silence(name)


@contextmanager
def heartbeat_watch(nodes: Sequence[NodeDescription], on_silence: Callable[[str], None]) -> Iterator[None]:
    """Watch nodes that are started again when they hang, as long as the block runs.

    Args:
        nodes: those with ``respawn`` and ``heartbeat_s`` are watched.
        on_silence: called with the full name of a node that hangs, on another thread.
    """
    watched = {node.full_name: node for node in nodes if node.respawn and node.heartbeat_s > 0}
    if not watched:
        yield
        return
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.executors import ExternalShutdownException

    from mca_perception.ros import qos
    from mca_perception.ros.private_node import private_node

    beats = Heartbeats({name: node.heartbeat_s for name, node in watched.items()}, on_silence, time.monotonic)
    stopped = threading.Event()

    def hear(array: DiagnosticArray) -> None:
        for status in array.status:
            if beats.hear(status.name):
                with suppress(OSError):  # a full disk or a closed pipe does not end the watch
                    print(f"[{watched[status.name].name}] is heard, and watched from now on", flush=True)

    def spin(executor: Any) -> None:
        while not stopped.is_set():
            try:
                executor.spin_once(timeout_sec=_POLL_S)
            except ExternalShutdownException:
                return

    with private_node("_bring_up") as (node, executor):
        node.create_subscription(DiagnosticArray, "/diagnostics", hear, qos.DIAGNOSTICS)
        node.create_timer(_POLL_S, beats.check)
        thread = threading.Thread(target=spin, args=(executor,), name="heartbeats", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
