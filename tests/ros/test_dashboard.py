"""`mca top` shows what the nodes publish about themselves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rich.console import Console

from mca_perception.ros.dashboard import Dashboard

pytestmark = pytest.mark.xdist_group("test_dashboard")


def text(dashboard: Dashboard) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(dashboard.render())
    return console.export_text()


def status(
    name: str, level: bytes = DiagnosticStatus.OK, message: str = "fine", **facts: str
) -> DiagnosticArray:
    values = [KeyValue(key=key.replace("__", "/"), value=value) for key, value in facts.items()]
    return DiagnosticArray(status=[DiagnosticStatus(name=name, level=level, message=message, values=values)])


def test_figures_of_every_node_are_shown() -> None:
    now = [0.0]
    dashboard = Dashboard(clock=lambda: now[0])
    assert "no node heard" in text(dashboard)
    dashboard.receive(
        status(
            "/cell/perception",
            DiagnosticStatus.WARN,
            "no image received yet",
            role="perception",
            state="active",
            model="nano@1",
            latency_p50_ms="12.34",
            latency_p95_ms="20.0",
            step_backbone_p50_ms="7.891",
            dropped__superseded="3",
        )
    )
    dashboard.receive(status("/cell/source", role="source"))
    dashboard.receive(status("/foreign"))
    shown = text(dashboard)
    for part in (
        "/cell/perception (perception)",
        "warn active  no image received yet",
        "nano@1",
        "12.3 / 20.0",
        "7.9",
        "superseded",
        "/cell/source (source)",
    ):
        assert part in shown
    assert "/foreign" not in shown
    assert len(dashboard) == 2
    now[0] = 7.0
    assert "nothing heard for 7 s" in text(dashboard)


def test_the_command_prints_running_nodes(
    start_node: Callable[..., Any], client: Any, colour_bundle: Path
) -> None:
    start_node("perception_node", model=str(colour_bundle))
    client.perception(lambda facts: facts["state"] == "active", "the node", 60)
    command = [sys.executable, "-m", "mca_perception.cli.main", "top", "--once", "--seconds", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "/perception/perception" in done.stdout
    assert "colours@" in done.stdout
