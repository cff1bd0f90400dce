"""Shows a :class:`~mca_perception.ros.dashboard.Dashboard` in a terminal while nodes run."""

from __future__ import annotations

import time

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rich.console import Console
from rich.live import Live

from mca_perception.ros import qos
from mca_perception.ros.dashboard import Dashboard
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
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    node = rclpy.create_node("_mca_top", context=context, start_parameter_services=False, enable_rosout=False)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    dashboard = Dashboard()
    node.create_subscription(DiagnosticArray, "/diagnostics", dashboard.receive, qos.DIAGNOSTICS)
    end = float("inf") if seconds is None else time.monotonic() + seconds
    try:
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
    except KeyboardInterrupt:
        pass
    finally:
        executor.shutdown(timeout_sec=1.0)
        node.destroy_node()
        rclpy.try_shutdown(context=context)
    return len(dashboard)
