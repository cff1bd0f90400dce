"""What runs where: the one description of processes for ``launch/*.launch.py``, ``mca up`` and ``mca demo``.

Imports neither rclpy nor launch, so that ``mca up --list-arguments`` works anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mca_perception.ros.launch_arguments import (
    PARALLEL_FRAMES_ARGUMENT,
    PROCESS_ARGUMENTS,
    SESSION_ARGUMENT,
    VIEW_ARGUMENTS,
    heartbeat_s,
    views,
)
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
from mca_perception.ros.parameter_files import with_parameter_file
from mca_perception.ros.service_descriptions import (
    CRISIS_ARGUMENTS,
    RETRIEVAL_ARGUMENTS,
    crisis,
    retrieval,
)
from mca_perception.ros.task_descriptions import task_descriptions

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
    SESSION_ARGUMENT,
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
    LaunchArgument("viewer", "false", "Whether to start the table of results.", ("true", "false")),
    LaunchArgument("out", "", "Folder in which the viewer keeps overlays and summary.json."),
    *PROCESS_ARGUMENTS,
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
                    "wait_for_consumers": int(with_viewer and not endless),
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
    return with_parameter_file([*nodes, *views(values, [namespace], frame)], values["params_file"])


def _perceiving(values: Mapping[str, str], namespace: str, policy: str) -> list[NodeDescription]:
    """The node that perceives, or the nodes that do so task by task."""
    parameters: dict[str, Any] = {
        "model": values["model"],
        "gallery": values["gallery"],
        "frame_policy": policy,
        "session": values["session"],
        "parallel_frames": int(number("parallel_frames", values)),
        "heartbeat_s": heartbeat_s(values),
        "score_threshold": number("score_threshold", values),
        "tracking": values["tracking"] == "true",
        "camera_info_file": values["camera_info_file"],
    }
    respawn = values["respawn"] == "true"
    if values["tasks"] == "together":
        return [
            NodeDescription(
                "perception_node",
                namespace,
                "perception",
                parameters=parameters | {"inspection": values["defects"] == "true"},
                remappings=camera_topics(values["image"], values["depth"], values["camera_info"]),
                respawn=respawn,
                lifecycle=True,
            )
        ]
    tasks = ["segmentation", *(["identification"] if values["gallery"] else [])]
    tasks += ["defects"] if values["defects"] == "true" else []
    camera = {name: values[name] for name in ("image", "depth", "camera_info")}
    if values["tasks"] == "container":
        parameters |= {"tasks": tasks, **camera, "params_file": values["params_file"]}
        return [NodeDescription("tasks_node", namespace, "tasks", parameters=parameters, respawn=respawn)]
    chain = task_descriptions(namespace, tasks, parameters, **camera)
    return in_order([replace(node, respawn=respawn) for node in chain], namespace)


MULTI_CAMERA_ARGUMENTS = (
    LaunchArgument("namespace", "perception", "Namespace above those of the cameras."),
    LaunchArgument("cameras", "left,right", "Names of the cameras, with commas between; their namespaces."),
    LaunchArgument("images", "", "Their image topics, in the same order. Empty: image in each namespace."),
    LaunchArgument(
        "camera_info_files",
        "",
        "Their calibration files, in the same order, for cameras without camera_info.",
    ),
    LaunchArgument("model", "models/nano", "Folder of the model bundle that they share."),
    LaunchArgument("gallery", "", "Gallery file of the products."),
    LaunchArgument(
        "frame_policy",
        "freshest",
        "Frames that come too fast: keep the freshest of each camera, or queue every_frame.",
        ("freshest", "every_frame"),
    ),
    SESSION_ARGUMENT,
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
    *PROCESS_ARGUMENTS,
    *VIEW_ARGUMENTS,
)


def multi_camera(arguments: Mapping[str, str]) -> list[NodeDescription]:
    """A perception node per camera: in one process, on one model and in turns; or in processes of their own.

    Args:
        arguments: values by name; the others keep their defaults.

    Raises:
        LaunchError: see :func:`resolve_arguments`; or images or files and cameras differ in number.
    """
    values = resolve_arguments(MULTI_CAMERA_ARGUMENTS, arguments)
    cameras, images, files = (
        [name.strip() for name in values[key].split(",") if name.strip()]
        for key in ("cameras", "images", "camera_info_files")
    )
    lists = {"images": images, "camera_info_files": files}
    for name, given in lists.items():
        if given and len(given) != len(cameras):
            raise LaunchError(f"launch argument {name} has {len(given)} entries for {len(cameras)} cameras")
    namespace = "/" + values["namespace"].strip("/")
    namespaces = [f"{namespace}/{camera}" for camera in cameras]
    common = {
        **{name: values[name] for name in ("model", "gallery", "session", "frame_policy")},
        "heartbeat_s": heartbeat_s(values),
        "parallel_frames": int(number("parallel_frames", values)),
        "tracking": values["tracking"] == "true",
    }
    respawn = values["respawn"] == "true"
    if values["processes"] == "separate":
        none = [""] * len(cameras)
        nodes = in_order(
            [
                _camera(*place, common, respawn)
                for place in zip(namespaces, images or none, files or none, strict=True)
            ],
            namespace,
        )
    else:
        parameters = {"cameras": cameras, **common}
        parameters |= {name: given for name, given in lists.items() if given}
        parameters |= {"batch": int(number("batch", values)), "params_file": values["params_file"]}
        nodes = [
            NodeDescription("cameras_node", namespace, "cameras", parameters=parameters, respawn=respawn)
        ]
    return with_parameter_file([*nodes, *views(values, namespaces)], values["params_file"])


def _camera(
    namespace: str, image: str, camera_info_file: str, parameters: Mapping[str, Any], respawn: bool
) -> NodeDescription:
    """The perception node of one camera, in a process of its own."""
    return NodeDescription(
        "perception_node",
        namespace,
        "perception",
        parameters={**parameters, "camera_info_file": camera_info_file},
        remappings=camera_topics(image),
        respawn=respawn,
        lifecycle=True,
    )


LAUNCHES: dict[
    str, tuple[tuple[LaunchArgument, ...], Callable[[Mapping[str, str]], list[NodeDescription]]]
] = {
    "armbench": (ARMBENCH_ARGUMENTS, armbench),
    "multi_camera": (MULTI_CAMERA_ARGUMENTS, multi_camera),
    "crisis": (CRISIS_ARGUMENTS, crisis),
    "retrieval": (RETRIEVAL_ARGUMENTS, retrieval),
}
"""Launch descriptions by name: their arguments, and the function from arguments to processes."""
