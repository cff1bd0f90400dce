"""What runs where: the one description of processes for ``launch/*.launch.py``, ``mca up`` and ``mca demo``.

Imports neither rclpy nor launch, so that ``mca up --list-arguments`` works anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mca_perception.errors import McaError

__all__ = ["LAUNCHES", "LaunchArgument", "LaunchError", "NodeDescription", "armbench", "resolve_arguments"]


class LaunchError(McaError, ValueError):
    """A launch argument does not exist or has no such value."""


@dataclass(frozen=True)
class LaunchArgument:
    """An argument of a launch description."""

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeDescription:
    """One process.

    Attributes:
        executable: name of the installed executable; also of the module in ``mca_perception.ros``.
        parameters: values that differ from the schema's defaults.
        remappings: (from, to) topic names.
        ends_launch: its end ends all the others.
    """

    executable: str
    namespace: str
    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    ends_launch: bool = False


ARMBENCH_ARGUMENTS = (
    LaunchArgument("namespace", "perception", "Namespace of all nodes; one per camera."),
    LaunchArgument("model", "models/nano", "Folder of the model bundle."),
    LaunchArgument(
        "gallery", "", "Gallery file of the products (mca gallery import). Empty: objects without products."
    ),
    LaunchArgument("image", "", "Topic of a camera that is already running, such as /camera/image_raw."),
    LaunchArgument(
        "source", "", "Folder, video, /dev/videoN or bag to publish. Empty: use a running camera."
    ),
    LaunchArgument("topic", "", "Image topic of a bag that has several."),
    LaunchArgument("rate_hz", "0.0", "Images per second of the source. 0: its own pace."),
    LaunchArgument("max_frames", "0", "Images that the source sends. 0: all."),
    LaunchArgument("loop", "false", "Whether the source starts again at its end.", ("true", "false")),
    LaunchArgument("encoding", "compressed", "How the source sends images.", ("compressed", "raw")),
    LaunchArgument(
        "frame_policy",
        "auto",
        "Frames that come too fast: keep the freshest, or queue every_frame. auto: queue files and bags.",
        ("auto", "freshest", "every_frame"),
    ),
    LaunchArgument("score_threshold", "-1.0", "Objects below this score are left out. -1: as calibrated."),
    LaunchArgument("viewer", "false", "Whether to start the table of results.", ("true", "false")),
    LaunchArgument("out", "", "Folder in which the viewer keeps overlays and summary.json."),
)


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


def armbench(arguments: Mapping[str, str]) -> list[NodeDescription]:
    """Perception node, and on request an image source and the viewer.

    Args:
        arguments: values by name; the others keep their defaults.

    Raises:
        LaunchError: see :func:`resolve_arguments`.
    """
    values = resolve_arguments(ARMBENCH_ARGUMENTS, arguments)
    if values["source"] and values["image"]:
        raise LaunchError("launch arguments source and image exclude each other; give one of them")
    namespace = "/" + values["namespace"].strip("/")
    camera = values["source"].startswith("/dev/") or not values["source"]
    policy = values["frame_policy"]
    if policy == "auto":
        policy = "freshest" if camera else "every_frame"
    image = values["image"]
    nodes = [
        NodeDescription(
            "perception_node",
            namespace,
            "perception",
            parameters={
                "model": values["model"],
                "gallery": values["gallery"],
                "frame_policy": policy,
                "score_threshold": _number("score_threshold", values),
            },
            remappings=(("image", image), ("image/compressed", f"{image}/compressed")) if image else (),
        )
    ]
    with_viewer = values["viewer"] == "true"
    if values["source"]:
        nodes.append(
            NodeDescription(
                "source_node",
                namespace,
                "source",
                parameters={
                    "source": values["source"],
                    "topic": values["topic"],
                    "rate_hz": _number("rate_hz", values),
                    "max_frames": int(_number("max_frames", values)),
                    "loop": values["loop"] == "true",
                    "encoding": values["encoding"],
                    "wait_for_consumers": int(with_viewer),
                },
                ends_launch=not with_viewer,
            )
        )
    if with_viewer:
        parameters = {"out": values["out"], "truth": "" if camera else values["source"]}
        nodes.append(NodeDescription("viewer_node", namespace, "viewer", parameters, ends_launch=True))
    return nodes


def _number(name: str, values: Mapping[str, str]) -> float:
    try:
        return float(values[name])
    except ValueError as error:
        raise LaunchError(f"launch argument {name} is {values[name]!r}, it must be a number") from error


LAUNCHES: dict[
    str, tuple[tuple[LaunchArgument, ...], Callable[[Mapping[str, str]], list[NodeDescription]]]
] = {"armbench": (ARMBENCH_ARGUMENTS, armbench)}
"""Launch descriptions by name: their arguments, and the function from arguments to processes."""
