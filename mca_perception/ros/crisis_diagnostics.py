"""Status of the crisis node for ``/diagnostics``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus

from mca_perception.crisis.drift import DriftStatus
from mca_perception.crisis.service import CrisisService, ServiceStatus
from mca_perception.ros.diagnostics import verdict_on_transitions
from mca_perception.ros.statistics import Snapshot

__all__ = ["crisis_status"]


def crisis_status(
    state: str, snapshot: Snapshot, core: CrisisService | None, facts: Mapping[str, Any]
) -> tuple[bytes, str, dict[str, Any]]:
    """Level, line and facts of the crisis node's status.

    Args:
        state: lifecycle state.
        snapshot: what the node counted.
        core: the service's core; None while the node is not active.
        facts: model and label version.
    """
    status = core.status() if core else None
    drift = core.drift.status() if core and core.drift else None
    values: dict[str, Any] = {"state": state, **facts, "posts_received": snapshot.received}
    if core and status:
        values |= {f"posts_{name}": value for name, value in asdict(status).items() if name != "degraded"}
        values |= {"degraded": status.degraded, "events": len(core.ranked.events())}
    if drift:
        values |= {
            "drift": drift.level,
            "drift_index": "" if drift.stability_index is None else round(drift.stability_index, 4),
            "drift_posts": drift.posts,
            "mean_confidence": round(drift.mean_confidence, 4),
            **{f"share/{name}": round(share, 4) for name, share in drift.shares.items()},
        }
    values |= {
        "posts_per_second": snapshot.fps,
        **{f"latency_{name}_ms": value for name, value in snapshot.latency_ms.items()},
        "last_error": snapshot.last_error,
        "transition_error": snapshot.transition_error,
    }
    level, message = _verdict(state, snapshot, status, drift)
    return level, message, values


def _verdict(
    state: str, snapshot: Snapshot, status: ServiceStatus | None, drift: DriftStatus | None
) -> tuple[bytes, str]:
    if found := verdict_on_transitions(state, snapshot):
        return found
    if status is None:
        return DiagnosticStatus.OK, state
    if status.degraded:
        return DiagnosticStatus.ERROR, f"degraded: {status.degraded}"
    if snapshot.error_is_recent:
        return DiagnosticStatus.WARN, snapshot.last_error
    if drift and drift.level == "strong":
        return DiagnosticStatus.WARN, (
            f"the posts differ strongly from those of the training (stability index {drift.stability_index:.2f}): "
            "check the reports by hand"
        )
    return DiagnosticStatus.OK, f"{status.answered} posts answered, {status.refused} refused"
