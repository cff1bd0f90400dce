"""What runs where: the one description of processes for ``launch/*.launch.py``, ``mca up`` and ``mca demo``.

Imports neither rclpy nor launch, so that ``mca up --list-arguments`` works anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mca_perception.errors import McaError

__all__ = [
    "LAUNCHES",
    "RESPAWN_DELAY_S",
    "LaunchArgument",
    "LaunchError",
    "NodeDescription",
    "armbench",
    "crisis",
    "multi_camera",
    "resolve_arguments",
    "retrieval",
]

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


@dataclass(frozen=True)
class NodeDescription:
    """One process.

    Attributes:
        executable: name of the installed executable; also of the module in ``mca_perception.ros``.
        parameters: values that differ from the schema's defaults.
        remappings: (from, to) topic names.
        ends_launch: its end ends all the others.
        respawn: it is started again after a signal ended it (a crash, a kill), and by `mca up` also when it hangs. An
            exit code of its own is an answer, and ends the launch.
        heartbeat_s: it hangs when it has said nothing on ``/diagnostics`` for so many seconds; 0 never.
    """

    executable: str
    namespace: str
    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    ends_launch: bool = False
    respawn: bool = False
    heartbeat_s: float = 0.0


ARMBENCH_ARGUMENTS = (
    LaunchArgument("namespace", "perception", "Namespace of all nodes; one per camera."),
    LaunchArgument("model", "models/nano", "Folder of the model bundle."),
    LaunchArgument(
        "gallery", "", "Gallery file of the products (mca gallery import). Empty: objects without products."
    ),
    LaunchArgument("image", "", "Topic of a camera that is already running, such as /camera/image_raw."),
    LaunchArgument("depth", "", "Topic of its depth images, aligned to them. Empty: depth in the namespace."),
    LaunchArgument(
        "camera_info", "", "Topic of its camera_info. Empty: next to image, or camera_info in the namespace."
    ),
    LaunchArgument("camera_info_file", "", "Calibration file for a camera without camera_info."),
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
    LaunchArgument("tracking", "false", "Whether objects get ids that last over frames.", ("true", "false")),
    LaunchArgument(
        "respawn", "true", "Start the perception node again when it crashes or hangs.", ("true", "false")
    ),
    LaunchArgument(
        "heartbeat_s", "15.0", "Seconds of silence after which a node hangs (mca up only). 0: never."
    ),
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
                "tracking": values["tracking"] == "true",
                "camera_info_file": values["camera_info_file"],
            },
            remappings=_camera_topics(image, values["depth"], values["camera_info"]),
            respawn=values["respawn"] == "true",
            heartbeat_s=_number("heartbeat_s", values),
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


CRISIS_ARGUMENTS = (
    LaunchArgument("namespace", "crisis", "Namespace of the node."),
    LaunchArgument("model", "models/crisis", "Folder of the model bundle."),
    LaunchArgument("posts", "", "Topic of the stream of posts. Empty: posts in the namespace."),
)


def crisis(arguments: Mapping[str, str]) -> list[NodeDescription]:
    """The node that categorises posts.

    Args:
        arguments: values by name; the others keep their defaults.

    Raises:
        LaunchError: see :func:`resolve_arguments`.
    """
    values = resolve_arguments(CRISIS_ARGUMENTS, arguments)
    return [
        NodeDescription(
            "crisis_node",
            "/" + values["namespace"].strip("/"),
            "crisis",
            parameters={"model": values["model"]},
            remappings=(("posts", values["posts"]),) if values["posts"] else (),
        )
    ]


RETRIEVAL_ARGUMENTS = (
    LaunchArgument("namespace", "retrieval", "Namespace of the node."),
    LaunchArgument("store", "retrieval.store", "Folder of the index (mca retrieval index)."),
    LaunchArgument("model", "", "Folder of the model bundle. Empty: the one that made the index."),
    LaunchArgument("back_end", "exact", "How all images are searched."),
)


def retrieval(arguments: Mapping[str, str]) -> list[NodeDescription]:
    """The node that finds images for documents.

    Args:
        arguments: values by name; the others keep their defaults.

    Raises:
        LaunchError: see :func:`resolve_arguments`.
    """
    values = resolve_arguments(RETRIEVAL_ARGUMENTS, arguments)
    parameters = {name: values[name] for name in ("store", "model", "back_end")}
    namespace = "/" + values["namespace"].strip("/")
    return [NodeDescription("retrieval_node", namespace, "retrieval", parameters=parameters)]


MULTI_CAMERA_ARGUMENTS = (
    LaunchArgument("namespace", "perception", "Namespace above those of the cameras."),
    LaunchArgument("cameras", "left,right", "Names of the cameras, with commas between; their namespaces."),
    LaunchArgument("images", "", "Their image topics, in the same order. Empty: image in each namespace."),
    LaunchArgument("model", "models/nano", "Folder of the model bundle that they share."),
    LaunchArgument("gallery", "", "Gallery file of the products."),
    LaunchArgument(
        "frame_policy",
        "freshest",
        "Frames that come too fast: keep the freshest of each camera, or queue every_frame.",
        ("freshest", "every_frame"),
    ),
    LaunchArgument("tracking", "false", "Whether objects get ids that last over frames.", ("true", "false")),
)


def multi_camera(arguments: Mapping[str, str]) -> list[NodeDescription]:
    """One process with a perception node per camera; they share the model and take turns.

    Args:
        arguments: values by name; the others keep their defaults.

    Raises:
        LaunchError: see :func:`resolve_arguments`; or images and cameras differ in number.
    """
    values = resolve_arguments(MULTI_CAMERA_ARGUMENTS, arguments)
    cameras, images = (
        [name.strip() for name in values[key].split(",") if name.strip()] for key in ("cameras", "images")
    )
    if images and len(images) != len(cameras):
        raise LaunchError(f"launch argument images names {len(images)} topics for {len(cameras)} cameras")
    return [
        NodeDescription(
            "cameras_node",
            "/" + values["namespace"].strip("/"),
            "cameras",
            parameters={
                "cameras": cameras,
                **({"images": images} if images else {}),
                **{name: values[name] for name in ("model", "gallery", "frame_policy")},
                "tracking": values["tracking"] == "true",
            },
            respawn=True,
        )
    ]


def _camera_topics(image: str, depth: str, camera_info: str) -> tuple[tuple[str, str], ...]:
    """Remappings to a camera's topics; camera_info is published next to the images unless it is named."""
    rules = []
    if image:
        beside = image.rpartition("/")[0]
        rules += [("image", image), ("image/compressed", f"{image}/compressed")]
        rules += [("camera_info", camera_info or f"{beside}/camera_info")]
    elif camera_info:
        rules += [("camera_info", camera_info)]
    return tuple(rules + ([("depth", depth)] if depth else []))


def _number(name: str, values: Mapping[str, str]) -> float:
    try:
        return float(values[name])
    except ValueError as error:
        raise LaunchError(f"launch argument {name} is {values[name]!r}, it must be a number") from error


LAUNCHES: dict[
    str, tuple[tuple[LaunchArgument, ...], Callable[[Mapping[str, str]], list[NodeDescription]]]
] = {
    "armbench": (ARMBENCH_ARGUMENTS, armbench),
    "multi_camera": (MULTI_CAMERA_ARGUMENTS, multi_camera),
    "crisis": (CRISIS_ARGUMENTS, crisis),
    "retrieval": (RETRIEVAL_ARGUMENTS, retrieval),
}
"""Launch descriptions by name: their arguments, and the function from arguments to processes."""
