"""Statuses on ``/diagnostics``: written by the nodes here, read back by the source and the viewer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from mca_perception.ros.qos import DIAGNOSTICS
from mca_perception.ros.statistics import Snapshot

__all__ = [
    "DROP_PREFIX",
    "DiagnosticsPublisher",
    "drops_in",
    "perception_status",
    "read_status",
    "verdict_on_transitions",
]

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
        state: lifecycle state, or the transition that is on its way, such as ``configuring``.
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
        "input_fps": snapshot.input_fps,
        **({"stamp_age_ms": round(snapshot.stamp_age_ms, 1)} if math.isfinite(snapshot.stamp_age_ms) else {}),
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
        "stalled_s": round(snapshot.stalled_s, 1),
        "last_error": snapshot.last_error,
        "transition_error": snapshot.transition_error,
    }
    level, message = _verdict(state, snapshot, facts)
    return level, message, {**facts, **counts}


def verdict_on_transitions(state: str, snapshot: Snapshot, building: str = "") -> tuple[bytes, str] | None:
    """Level and line of a node that is not active, or whose last transition failed; None for others.

    Args:
        state: lifecycle state, or the transition that is on its way.
        snapshot: holds why the last transition failed.
        building: what the transition is at, where that takes long.
    """
    if snapshot.transition_error:
        failed = {"unconfigured": "not configured", "inactive": "not active"}.get(state, f"still {state}")
        return DiagnosticStatus.ERROR, f"{failed}: {snapshot.transition_error}"
    if state != "active":
        return DiagnosticStatus.OK, f"{state}: {building}" if building else state
    return None


def _verdict(state: str, snapshot: Snapshot, facts: Mapping[str, Any]) -> tuple[bytes, str]:
    if found := verdict_on_transitions(state, snapshot, str(facts.get("building", ""))):
        return found
    if snapshot.error_is_recent:
        return DiagnosticStatus.WARN, snapshot.last_error
    if problem := facts.get("input_problem"):
        return DiagnosticStatus.WARN, str(problem)
    if problem := facts.get("gallery_problem"):
        return DiagnosticStatus.WARN, f"objects carry no products: {problem}"
    if facts.get("gallery") and not facts.get("gallery_products"):
        return DiagnosticStatus.WARN, "the gallery is empty: objects carry no products"
    if not snapshot.received:
        return DiagnosticStatus.WARN, "no image received yet"
    if snapshot.silent_s > SILENT_S:
        return DiagnosticStatus.WARN, f"no image for {snapshot.silent_s:.0f} s: is the camera running?"
    if snapshot.stalled_s > SILENT_S:
        return (
            DiagnosticStatus.WARN,
            f"no result for {snapshot.stalled_s:.0f} s: the model hangs, or is too slow for this machine",
        )
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
