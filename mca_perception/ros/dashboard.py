"""What the nodes say about themselves on ``/diagnostics``, as tables for a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from mca_perception.ros.diagnostics import drops_in

__all__ = ["Dashboard"]

STALE_S = 5.0
_STEPS = ("letterbox", "backbone", "segmentation", "postprocess", "identification", "defects", "total")
_LEVELS = {
    DiagnosticStatus.OK: ("ok", "green"),
    DiagnosticStatus.WARN: ("warn", "yellow"),
    DiagnosticStatus.ERROR: ("error", "bold red"),
    DiagnosticStatus.STALE: ("stale", "bold red"),
}


@dataclass(frozen=True)
class _Entry:
    level: bytes
    message: str
    facts: dict[str, str]
    heard_s: float


class Dashboard:
    """Keeps the latest status of every node of ours."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def receive(self, array: DiagnosticArray) -> None:
        """Take a message; statuses without a ``role`` are of other nodes."""
        for status in array.status:
            facts = {value.key: value.value for value in status.values}
            if "role" in facts:
                self._entries[status.name] = _Entry(status.level, status.message, facts, self._clock())

    def __len__(self) -> int:
        return len(self._entries)

    def render(self) -> RenderableType:
        """One panel per node; a hint while none was heard."""
        if not self._entries:
            return Panel("no node heard yet; is one running, on the same ROS_DOMAIN_ID?", title="mca top")
        return Group(*(self._panel(name, entry) for name, entry in sorted(self._entries.items())))

    def _panel(self, name: str, entry: _Entry) -> Panel:
        silent = self._clock() - entry.heard_s
        level, colour = _LEVELS.get(entry.level, ("unknown", "white"))
        message = entry.message
        if silent > STALE_S:
            level, colour, message = "silent", "bold red", f"nothing heard for {silent:.0f} s"
        facts = entry.facts
        grid = Table.grid(padding=(0, 3))
        grid.add_row(_facts(facts), _latencies(facts), _steps(facts), _drops(facts))
        state = f" {facts['state']}" if "state" in facts else ""
        return Panel(
            Group(f"[{colour}]{level}[/]{state}  {message}", grid),
            title=f"{name} ({facts['role']})",
            title_align="left",
        )


def _rows(title: str, rows: dict[str, str | None]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_row(f"[bold]{title}[/]", "")
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def _facts(facts: dict[str, str]) -> Table:
    names = {
        "model": "model",
        "provider": "provider",
        "gallery_products": "products",
        "container_id": "container",
        "frame_policy": "policy",
        "fps": "fps",
        "input_fps": "input fps",
        "stamp_age_ms": "stamp age ms",
        "frames_received": "received",
        "frames_processed": "processed",
        "frames_waiting": "waiting",
        "camera_info": "camera_info",
        "depth": "depth",
        "silent_s": "silent s",
        "gpu_memory_used_mb": "GPU MB",
        "building": "building",
    }
    return _rows("node", {title: facts.get(key) for key, title in names.items()})


def _latencies(facts: dict[str, str]) -> Table:
    def percentiles(figure: str) -> str | None:
        values = [facts.get(f"{figure}_{level}_ms") for level in ("p50", "p95", "p99")]
        return " / ".join(_short(value) for value in values if value) or None

    figures = ("latency", "processing", "queue", "cyclic")
    return _rows("ms, p50 / p95 / p99", {figure: percentiles(figure) for figure in figures})


def _steps(facts: dict[str, str]) -> Table:
    return _rows("steps, p50 ms", {step: _short(facts.get(f"step_{step}_p50_ms", "")) for step in _STEPS})


def _drops(facts: dict[str, str]) -> Table:
    return _rows("dropped", {cause: str(count) for cause, count in drops_in(facts).items()})


def _short(value: str) -> str:
    try:
        return f"{float(value):.1f}"
    except ValueError:
        return value
