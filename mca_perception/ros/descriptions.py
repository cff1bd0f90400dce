"""What runs where: the one description of processes for ``launch/*.launch.py``, ``mca up`` and ``mca demo``.

Imports neither rclpy nor launch, so that ``mca up --list-arguments`` works anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mca_perception.ros.node_descriptions import (
    RESPAWN_DELAY_S,
    LaunchArgument,
    LaunchError,
    NodeDescription,
    camera_topics,
    in_order,
    number,
    resolve_arguments,
)
from mca_perception.ros.task_descriptions import task_descriptions
from mca_perception.ros.views import VIEWS, view_nodes

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

SOURCE_FRAME = "camera"
"""Frame of the source's images where none is recorded."""

VIEW_ARGUMENTS = (
    LaunchArgument(
        "view",
        "none",
        "What to look with: rviz, foxglove (Foxglove's bridge), or web (our own server for Foxglove).",
        VIEWS,
    ),
    LaunchArgument("view_port", "8765", "Port that foxglove and web listen on."),
)

PARALLEL_FRAMES_ARGUMENT = LaunchArgument(
    "parallel_frames",
    "1",
    "Frames that are worked on at the same time: more frames per second, each later.",
)

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
    PARALLEL_FRAMES_ARGUMENT,
    LaunchArgument("score_threshold", "-1.0", "Objects below this score are left out. -1: as calibrated."),
    LaunchArgument("tracking", "false", "Whether objects get ids that last over frames.", ("true", "false")),
    LaunchArgument(
        "tasks",
        "together",
        "One node for everything; or a node per task, all in one container process or in separate ones.",
        ("together", "container", "separate"),
    ),
    LaunchArgument(
        "defects",
        "false",
        "Whether objects are judged for defects: for cameras that see picks, not totes.",
        ("true", "false"),
    ),
    LaunchArgument(
        "respawn", "true", "Start the perception node again when it crashes or hangs.", ("true", "false")
    ),
    LaunchArgument(
        "heartbeat_s", "15.0", "Seconds of silence after which a node hangs (mca up only). 0: never."
    ),
    LaunchArgument("viewer", "false", "Whether to start the table of results.", ("true", "false")),
    LaunchArgument("out", "", "Folder in which the viewer keeps overlays and summary.json."),
    *VIEW_ARGUMENTS,
)


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
    nodes = _perceiving(values, namespace, policy)
    with_viewer = values["viewer"] == "true"
    endless = (camera or values["loop"] == "true") and not number("max_frames", values)
    if values["source"]:
        nodes.append(
            NodeDescription(
                "source_node",
                namespace,
                "source",
                parameters={
                    "source": values["source"],
                    "topic": values["topic"],
                    "rate_hz": number("rate_hz", values),
                    "max_frames": int(number("max_frames", values)),
                    "loop": values["loop"] == "true",
                    "encoding": values["encoding"],
                    "wait_for_perception": True,
                    "wait_for_consumers": int(with_viewer),
                },
                ends_launch=endless or not with_viewer,
            )
        )
    if with_viewer:
        parameters: dict[str, Any] = {"out": values["out"], "truth": "" if camera else values["source"]}
        if endless:  # a robot that works does not stop because nobody looks on, or a camera pauses
            parameters["idle_timeout_s"] = 0.0
        nodes.append(
            NodeDescription(
                "viewer_node",
                namespace,
                "viewer",
                parameters,
                ends_launch=not endless,
                optional=endless,
            )
        )
    frame = SOURCE_FRAME if values["source"] else ""
    return [*nodes, *_view(values, [namespace], frame)]


def _perceiving(values: Mapping[str, str], namespace: str, policy: str) -> list[NodeDescription]:
    """The node that perceives, or the nodes that do so task by task."""
    parameters: dict[str, Any] = {
        "model": values["model"],
        "gallery": values["gallery"],
        "frame_policy": policy,
        "parallel_frames": int(number("parallel_frames", values)),
        "score_threshold": number("score_threshold", values),
        "tracking": values["tracking"] == "true",
        "camera_info_file": values["camera_info_file"],
    }
    respawn, heartbeat_s = values["respawn"] == "true", number("heartbeat_s", values)
    if values["tasks"] == "together":
        return [
            NodeDescription(
                "perception_node",
                namespace,
                "perception",
                parameters=parameters | {"inspection": values["defects"] == "true"},
                remappings=camera_topics(values["image"], values["depth"], values["camera_info"]),
                respawn=respawn,
                heartbeat_s=heartbeat_s,
                lifecycle=True,
            )
        ]
    tasks = ["segmentation", *(["identification"] if values["gallery"] else [])]
    tasks += ["defects"] if values["defects"] == "true" else []
    if values["tasks"] == "container":
        parameters |= {"tasks": tasks, "image": values["image"]}
        return [NodeDescription("tasks_node", namespace, "tasks", parameters=parameters, respawn=respawn)]
    places = {name: values[name] for name in ("image", "depth", "camera_info")}
    chain = task_descriptions(namespace, tasks, parameters, **places)
    return in_order([replace(node, respawn=respawn) for node in chain], namespace)


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
            lifecycle=True,
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
    return [NodeDescription("retrieval_node", namespace, "retrieval", parameters=parameters, lifecycle=True)]


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
    PARALLEL_FRAMES_ARGUMENT,
    LaunchArgument("tracking", "false", "Whether objects get ids that last over frames.", ("true", "false")),
    LaunchArgument(
        "batch",
        "1",
        "Rows of different cameras that go through the shared model at once; more than 1 pays on a GPU.",
    ),
    LaunchArgument(
        "processes",
        "shared",
        "One process for all cameras, which share the model, or separate ones, which share nothing.",
        ("shared", "separate"),
    ),
    *VIEW_ARGUMENTS,
)


def multi_camera(arguments: Mapping[str, str]) -> list[NodeDescription]:
    """A perception node per camera: in one process, on one model and in turns; or in processes of their own.

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
    namespace = "/" + values["namespace"].strip("/")
    namespaces = [f"{namespace}/{camera}" for camera in cameras]
    common = {
        **{name: values[name] for name in ("model", "gallery", "frame_policy")},
        "parallel_frames": int(number("parallel_frames", values)),
        "tracking": values["tracking"] == "true",
    }
    if values["processes"] == "separate":
        topics = images or [""] * len(cameras)
        nodes = in_order(
            [_camera(*place, common) for place in zip(namespaces, topics, strict=True)], namespace
        )
    else:
        parameters = {"cameras": cameras, **({"images": images} if images else {}), **common}
        parameters["batch"] = int(number("batch", values))
        nodes = [NodeDescription("cameras_node", namespace, "cameras", parameters=parameters, respawn=True)]
    return [*nodes, *_view(values, namespaces)]


def _camera(namespace: str, image: str, parameters: Mapping[str, Any]) -> NodeDescription:
    """The perception node of one camera, in a process of its own."""
    return NodeDescription(
        "perception_node",
        namespace,
        "perception",
        parameters=dict(parameters),
        remappings=camera_topics(image),
        respawn=True,
        lifecycle=True,
    )


def _view(values: Mapping[str, str], namespaces: Sequence[str], frame: str = "") -> list[NodeDescription]:
    """What the arguments ``view`` and ``view_port`` ask for."""
    return view_nodes(values["view"], namespaces, port=int(number("view_port", values)), frame=frame)


LAUNCHES: dict[
    str, tuple[tuple[LaunchArgument, ...], Callable[[Mapping[str, str]], list[NodeDescription]]]
] = {
    "armbench": (ARMBENCH_ARGUMENTS, armbench),
    "multi_camera": (MULTI_CAMERA_ARGUMENTS, multi_camera),
    "crisis": (CRISIS_ARGUMENTS, crisis),
    "retrieval": (RETRIEVAL_ARGUMENTS, retrieval),
}
"""Launch descriptions by name: their arguments, and the function from arguments to processes."""
