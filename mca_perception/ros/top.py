"""Shows a :class:`~mca_perception.ros.dashboard.Dashboard` in a terminal while nodes run."""

from __future__ import annotations

import time
from contextlib import suppress

from diagnostic_msgs.msg import DiagnosticArray
from rich.console import Console
from rich.live import Live

from mca_perception.ros import qos
from mca_perception.ros.dashboard import Dashboard
from mca_perception.ros.private_node import private_node
from mca_perception.ros.transport import prepare_process

__all__ = ["show"]

_REFRESH_S = 0.5


def show(console: Console, *, seconds: float | None = None, once: bool = False) -> int:
    """Show the nodes until interrupted.

    Args:
        console: where to.
        seconds: end after so many; ``None`` for no limit.
        once: end with the first table instead, printed plainly.

    Returns:
        How many nodes were heard.
    """
    prepare_process()
    dashboard = Dashboard()
    end = float("inf") if seconds is None else time.monotonic() + seconds
    with private_node("_mca_top") as (node, executor), suppress(KeyboardInterrupt):
        node.create_subscription(DiagnosticArray, "/diagnostics", dashboard.receive, qos.DIAGNOSTICS)
        if once:
            while not len(dashboard) and time.monotonic() < end:
                executor.spin_once(timeout_sec=_REFRESH_S)
            settled = min(end, time.monotonic() + 2 * _REFRESH_S)
            while time.monotonic() < settled:
                executor.spin_once(timeout_sec=_REFRESH_S)
            console.print(dashboard.render())
        else:
            with Live(
                dashboard.render(), console=console, screen=console.is_terminal, auto_refresh=False
            ) as live:
                while time.monotonic() < end:
                    refresh = time.monotonic() + _REFRESH_S
                    while time.monotonic() < refresh:
                        executor.spin_once(timeout_sec=_REFRESH_S)
                    live.update(dashboard.render(), refresh=True)
    return len(dashboard)
