"""Programs that show running nodes, as launch descriptions start them: RViz, Foxglove's bridge, our own web view."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from mca_perception.resources import resource_path
from mca_perception.ros.node_descriptions import OWN_PACKAGE, LaunchError, NodeDescription

__all__ = ["VIEWS", "check_installed", "find_executable", "view_nodes"]

VIEWS = ("none", "rviz", "foxglove", "web")
RVIZ_CONFIG = "config/perception.rviz"
CONFIGURED_NAMESPACE = "/perception"
"""Namespace of the topics in the configuration of RViz."""

RVIZ_TOPICS = ("overlay/compressed", "object_points")


def view_nodes(
    view: str, namespaces: Sequence[str], *, port: int = 8765, frame: str = ""
) -> list[NodeDescription]:
    """What to start for a view; the nodes that are looked at go on without it.

    Args:
        view: one of :data:`VIEWS`.
        namespaces: of the perception nodes to look at. RViz is started once for each.
        port: that ``foxglove`` and ``web`` listen on.
        frame: fixed frame of RViz; empty for the one in its configuration.
    """
    if view == "foxglove":
        parameters = {"port": port, "address": "127.0.0.1"}
        return [
            NodeDescription(
                "foxglove_bridge",
                "/",
                "foxglove_bridge",
                parameters,
                optional=True,
                package="foxglove_bridge",
            )
        ]
    if view == "web":
        return [
            NodeDescription(
                "web_view_node",
                "/",
                "web_view",
                {"namespaces": list(namespaces), "port": port},
                optional=True,
            )
        ]
    if view == "rviz":
        words = ("-d", str(resource_path(RVIZ_CONFIG)), *(("-f", frame) if frame else ()))
        return [
            NodeDescription(
                "rviz2",
                namespace,
                "rviz",
                remappings=_moved(namespace),
                optional=True,
                package="rviz2",
                arguments=words,
            )
            for namespace in namespaces
        ]
    return []


def _moved(namespace: str) -> tuple[tuple[str, str], ...]:
    """From the topics in the configuration of RViz to those of a namespace."""
    if namespace == CONFIGURED_NAMESPACE:
        return ()
    return tuple((f"{CONFIGURED_NAMESPACE}/{name}", f"{namespace}/{name}") for name in RVIZ_TOPICS)


def find_executable(package: str, executable: str) -> Path | None:
    """Executable of a ROS package, in the order of ``AMENT_PREFIX_PATH``."""
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    candidates = (Path(prefix, "lib", package, executable) for prefix in prefixes if prefix)
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def check_installed(nodes: Sequence[NodeDescription]) -> None:
    """Refuse to start programs that are not there, before anything is started.

    Raises:
        LaunchError: one is missing; the message tells how to get it, and what to take instead.
    """
    for node in nodes:
        if node.package != OWN_PACKAGE and find_executable(node.package, node.executable) is None:
            package = node.package.replace("_", "-")
            raise LaunchError(
                f"{node.executable} is not installed, or ROS 2 is not sourced; "
                f"install it (sudo apt install ros-$ROS_DISTRO-{package}) or choose view:=web"
            )
        if node.executable == "web_view_node" and importlib.util.find_spec("foxglove") is None:
            raise LaunchError(
                "view:=web needs foxglove-sdk, which is not installed; "
                "install it (pip install 'mca_perception[foxglove]') or choose view:=none"
            )
