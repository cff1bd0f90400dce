"""The nodes of the two services, crisis and retrieval. Imports neither rclpy nor launch."""

from __future__ import annotations

from collections.abc import Mapping

from mca_perception.ros.launch_arguments import (
    PROCESS_ARGUMENTS,
    SERVICE_VIEW_ARGUMENTS,
    heartbeat_s,
    views,
)
from mca_perception.ros.node_descriptions import LaunchArgument, NodeDescription, resolve_arguments
from mca_perception.ros.parameter_files import with_parameter_file

__all__ = ["CRISIS_ARGUMENTS", "RETRIEVAL_ARGUMENTS", "crisis", "retrieval"]

CRISIS_ARGUMENTS = (
    LaunchArgument("namespace", "crisis", "Namespace of the node."),
    LaunchArgument("model", "models/crisis", "Folder of the model bundle."),
    LaunchArgument("posts", "", "Topic of the stream of posts. Empty: posts in the namespace."),
    *PROCESS_ARGUMENTS,
    *SERVICE_VIEW_ARGUMENTS,
)


def crisis(arguments: Mapping[str, str]) -> list[NodeDescription]:
    """The node that categorises posts.

    Args:
        arguments: values by name; the others keep their defaults.

    Raises:
        LaunchError: see :func:`resolve_arguments`.
    """
    values = resolve_arguments(CRISIS_ARGUMENTS, arguments)
    rules = (("posts", values["posts"]),) if values["posts"] else ()
    return _service("crisis", values, ("model",), rules)


RETRIEVAL_ARGUMENTS = (
    LaunchArgument("namespace", "retrieval", "Namespace of the node."),
    LaunchArgument("store", "retrieval.store", "Folder of the index (mca retrieval index)."),
    LaunchArgument("model", "", "Folder of the model bundle. Empty: the one that made the index."),
    LaunchArgument(
        "back_end",
        "exact",
        "How all images are searched.",
        (
            *("exact", "faiss-flat", "faiss-float16", "faiss-int8"),
            *("faiss-hnsw", "faiss-hnsw-int8", "faiss-ivf-int8", "qdrant"),
        ),
    ),
    *PROCESS_ARGUMENTS,
    *SERVICE_VIEW_ARGUMENTS,
)


def retrieval(arguments: Mapping[str, str]) -> list[NodeDescription]:
    """The node that finds images for documents.

    Args:
        arguments: values by name; the others keep their defaults.

    Raises:
        LaunchError: see :func:`resolve_arguments`.
    """
    values = resolve_arguments(RETRIEVAL_ARGUMENTS, arguments)
    return _service("retrieval", values, ("store", "model", "back_end"))


def _service(
    name: str,
    values: Mapping[str, str],
    parameters: tuple[str, ...],
    remappings: tuple[tuple[str, str], ...] = (),
) -> list[NodeDescription]:
    """The node of a service, with those arguments that are its parameters, and what looks at it."""
    node = NodeDescription(
        f"{name}_node",
        "/" + values["namespace"].strip("/"),
        name,
        parameters={key: values[key] for key in parameters} | {"heartbeat_s": heartbeat_s(values)},
        remappings=remappings,
        respawn=values["respawn"] == "true",
        lifecycle=True,
    )
    return with_parameter_file([node, *views(values, [])], values["params_file"])
