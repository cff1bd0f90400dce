"""Statuses on ``/diagnostics``: written by the nodes here, read back by the source and the viewer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from mca_perception.ros.qos import DIAGNOSTICS
from mca_perception.ros.statistics import Snapshot

__all__ = ["DROP_PREFIX", "DiagnosticsPublisher", "drops_in", "perception_status", "read_status"]

DROP_PREFIX = "dropped/"
PERIOD_S = 1.0
SILENT_S = 5.0
"""A camera that sends nothing for longer is reported."""


class DiagnosticsPublisher:
    """Publishes one node's status on ``/diagnostics``: named after the node, with its role as a key."""

    def __init__(self, node: Node, role: str) -> None:
        self._node = node
        self._role = role
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", DIAGNOSTICS)

    def publish(self, level: bytes, message: str, facts: Mapping[str, Any]) -> None:
        """Publish a status now.

        Args:
            level: one of the levels of ``DiagnosticStatus``.
            message: one line for the operator.
            facts: further keys and values.
        """
        values = {"role": self._role, **facts}
        status = DiagnosticStatus(
            level=level,
            name=self._node.get_fully_qualified_name(),
            message=message,
            hardware_id=self._node.get_name(),
            values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def flush(self, timeout_s: float) -> bool:
        """Wait until every reader has what was published; ``False`` after the timeout."""
        from rclpy.duration import Duration

        return self._publisher.wait_for_all_acked(Duration(nanoseconds=int(timeout_s * 1e9)))


def read_status(array: DiagnosticArray, namespace: str, role: str) -> dict[str, str] | None:
    """Facts of the node with a role in a namespace, plus its ``message``.

    Returns:
        Values by key; ``None`` when the message holds no status of that node.
    """
    for status in array.status:
        facts = {value.key: value.value for value in status.values}
        if facts.get("role") == role and status.name.rpartition("/")[0] == namespace.rstrip("/"):
            return {**facts, "message": status.message}
    return None


def drops_in(facts: Mapping[str, str]) -> dict[str, int]:
    """Dropped frames by cause, from the facts of a status."""
    return {
        key.removeprefix(DROP_PREFIX): int(value)
        for key, value in facts.items()
        if key.startswith(DROP_PREFIX)
    }


def perception_status(
    state: str, snapshot: Snapshot, facts: Mapping[str, Any]
) -> tuple[bytes, str, dict[str, Any]]:
    """Level, line and facts of the perception node's status.

    Args:
        state: lifecycle state.
        snapshot: its counts.
        facts: model, provider, gallery and container.
    """
    counts = {
        "state": state,
        "frames_received": snapshot.received,
        "frames_processed": snapshot.processed,
        "frames_dropped": sum(snapshot.drops.values()),
        **{DROP_PREFIX + cause: count for cause, count in sorted(snapshot.drops.items())},
        "fps": snapshot.fps,
        **{
            f"{figure}_{name}_ms": value
            for figure, values in (
                ("latency", snapshot.latency_ms),
                ("processing", snapshot.processing_ms),
                ("queue", snapshot.queue_ms),
                ("cyclic", snapshot.cyclic_ms),
            )
            for name, value in values.items()
        },
        **{f"step_{name}_p50_ms": value for name, value in snapshot.steps_ms.items()},
        **{f"stamps_{kind}": count for kind, count in sorted(snapshot.odd_stamps.items())},
        "silent_s": round(snapshot.silent_s, 1),
        "last_error": snapshot.last_error,
    }
    level, message = _verdict(state, snapshot, facts)
    return level, message, {**facts, **counts}


def _verdict(state: str, snapshot: Snapshot, facts: Mapping[str, Any]) -> tuple[bytes, str]:
    if state == "unconfigured" and snapshot.last_error:
        return DiagnosticStatus.ERROR, f"not configured: {snapshot.last_error}"
    if state != "active":
        return DiagnosticStatus.OK, state
    if snapshot.error_is_recent:
        return DiagnosticStatus.WARN, snapshot.last_error
    if problem := facts.get("input_problem"):
        return DiagnosticStatus.WARN, str(problem)
    if facts.get("gallery") and not facts.get("gallery_products"):
        return DiagnosticStatus.WARN, "the gallery is empty: objects carry no products"
    if not snapshot.received:
        return DiagnosticStatus.WARN, "no image received yet"
    if snapshot.silent_s > SILENT_S:
        return DiagnosticStatus.WARN, f"no image for {snapshot.silent_s:.0f} s: is the camera running?"
    if snapshot.drops and not snapshot.processed:
        causes = ", ".join(f"{cause} {count}" for cause, count in sorted(snapshot.drops.items()))
        return (
            DiagnosticStatus.WARN,
            f"{snapshot.received} frames received, none processed; dropped: {causes}",
        )
    if problem := facts.get("depth_problem"):
        return DiagnosticStatus.WARN, str(problem)
    return DiagnosticStatus.OK, f"{snapshot.processed} frames, {snapshot.fps:g} fps"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
