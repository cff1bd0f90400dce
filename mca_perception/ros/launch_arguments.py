"""Arguments that several launch descriptions have, and what follows from them. Imports neither rclpy nor launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mca_perception.ros.node_descriptions import LaunchArgument, NodeDescription, number
from mca_perception.ros.views import VIEWS, view_nodes

__all__ = [
    "PARALLEL_FRAMES_ARGUMENT",
    "PROCESS_ARGUMENTS",
    "SERVICE_VIEW_ARGUMENTS",
    "SESSION_ARGUMENT",
    "VIEW_ARGUMENTS",
    "heartbeat_s",
    "views",
]

VIEW_ARGUMENTS = (
    LaunchArgument(
        "view",
        "none",
        "What to look with: rviz, foxglove (Foxglove's bridge), or web (our own server for Foxglove).",
        VIEWS,
    ),
    LaunchArgument("view_port", "8765", "Port that foxglove and web listen on."),
)

SERVICE_VIEW_ARGUMENTS = (
    LaunchArgument("view", "none", "What to look with: foxglove (Foxglove's bridge).", ("none", "foxglove")),
    LaunchArgument("view_port", "8765", "Port that foxglove listens on."),
)

PROCESS_ARGUMENTS = (
    LaunchArgument("respawn", "true", "Start a node again when it crashes or hangs.", ("true", "false")),
    LaunchArgument(
        "heartbeat_s", "15.0", "A node hangs when one of its callbacks takes longer, in seconds. 0: never."
    ),
    LaunchArgument(
        "params_file", "", "YAML file with parameters of the nodes; they win over the launch arguments."
    ),
)

SESSION_ARGUMENT = LaunchArgument(
    "session",
    "auto",
    "What runs the model's graphs; auto takes the best that works on the machine.",
    (
        *("auto", "onnxruntime-cpu", "onnxruntime-cuda", "openvino"),
        *("tensorrt", "torch", "torch-package", "triton"),
    ),
)

PARALLEL_FRAMES_ARGUMENT = LaunchArgument(
    "parallel_frames",
    "1",
    "Frames that are worked on at the same time: more frames per second, each later.",
)


def heartbeat_s(values: Mapping[str, str]) -> float:
    """A node that nobody would start again does not end itself."""
    return number("heartbeat_s", values) if values["respawn"] == "true" else 0.0


def views(values: Mapping[str, str], namespaces: Sequence[str], frame: str = "") -> list[NodeDescription]:
    """What the arguments ``view`` and ``view_port`` ask for."""
    return view_nodes(values["view"], namespaces, port=int(number("view_port", values)), frame=frame)
