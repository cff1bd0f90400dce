"""The words that launch descriptions are written in: arguments and nodes. Imports neither rclpy nor launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mca_perception.errors import McaError

__all__ = [
    "OWN_PACKAGE",
    "RESPAWN_DELAY_S",
    "LaunchArgument",
    "LaunchError",
    "NodeDescription",
    "arguments_table",
    "camera_topics",
    "in_order",
    "number",
    "resolve_arguments",
]

OWN_PACKAGE = "mca_perception"

RESPAWN_DELAY_S = 1.0
"""Seconds before a node that has ended is started again."""


class LaunchError(McaError, ValueError):
    """A launch argument does not exist or has no such value."""


@dataclass(frozen=True)
class LaunchArgument:
    """An argument of a launch description."""

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()


def arguments_table(arguments: Sequence[LaunchArgument]) -> str:
    """The table of a launch description's arguments for the documentation."""
    lines = ["| argument | default | choices | meaning |", "|---|---|---|---|"]
    for argument in arguments:
        default = f"`{argument.default}`" if argument.default else ""
        choices = ", ".join(f"`{choice}`" for choice in argument.choices)
        lines.append(f"| `{argument.name}` | {default} | {choices} | {argument.description} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class NodeDescription:
    """One process.

    Attributes:
        executable: name of the installed executable; with this package also of the module in ``mca_perception.ros``.
        parameters: values that differ from the schema's defaults.
        remappings: (from, to) topic names.
        ends_launch: its end ends all the others.
        optional: the others go on without it, however it ends.
        respawn: it is started again after a signal ended it: a crash, a kill, its own watchdog. An exit code of its
            own is an answer, and ends the launch.
        lifecycle: it is a lifecycle node that configures and activates itself unless ``autostart`` is off.
        package: ROS package of the executable.
        arguments: words of its command line, before those for ROS.
    """

    executable: str
    namespace: str
    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    ends_launch: bool = False
    optional: bool = False
    respawn: bool = False
    lifecycle: bool = False
    package: str = OWN_PACKAGE
    arguments: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """Namespace and name, as ROS writes them."""
        return f"{self.namespace.rstrip('/')}/{self.name}"


def resolve_arguments(declared: tuple[LaunchArgument, ...], given: Mapping[str, str]) -> dict[str, str]:
    """Values of all arguments: those given, else the defaults.

    Raises:
        LaunchError: an argument is not declared, or its value is not one of its choices.
    """
    known = {argument.name: argument for argument in declared}
    for name, value in given.items():
        if name not in known:
            raise LaunchError(f"launch argument {name!r} does not exist; there are: {', '.join(known)}")
        if known[name].choices and value not in known[name].choices:
            raise LaunchError(
                f"launch argument {name} is {value!r}; choose one of {', '.join(known[name].choices)}"
            )
    return {name: given.get(name, argument.default) for name, argument in known.items()}


def number(name: str, values: Mapping[str, str]) -> float:
    """A launch argument as a number.

    Raises:
        LaunchError: it is none.
    """
    try:
        return float(values[name])
    except ValueError as error:
        raise LaunchError(f"launch argument {name} is {values[name]!r}, it must be a number") from error


def in_order(nodes: Sequence[NodeDescription], namespace: str) -> list[NodeDescription]:
    """The same nodes, brought up by a manager: all lifecycle nodes configured in order, then activated in order.

    Args:
        nodes: in the order of their start.
        namespace: of the manager.
    """
    managed = [node.full_name for node in nodes if node.lifecycle]
    silent = [
        replace(node, parameters={**node.parameters, "autostart": False}) if node.lifecycle else node
        for node in nodes
    ]
    return [*silent, NodeDescription("manager_node", namespace, "manager", parameters={"nodes": managed})]


def camera_topics(image: str, depth: str = "", camera_info: str = "") -> tuple[tuple[str, str], ...]:
    """Remappings to a camera's topics; camera_info is published next to the images unless it is named."""
    rules = []
    if image:
        beside = image.rpartition("/")[0]
        rules += [("image", image), ("image/compressed", f"{image}/compressed")]
        rules += [("camera_info", camera_info or f"{beside}/camera_info")]
    elif camera_info:
        rules += [("camera_info", camera_info)]
    return tuple(rules + ([("depth", depth)] if depth else []))
