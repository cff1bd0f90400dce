"""Segmentation, identification and defects as nodes of their own. Imports neither rclpy nor launch.

They chain: identification reads what segmentation found, defects what identification wrote. The last one stands where
the node ``perception`` would; those before it have namespaces of their own below, but publish and serve where it would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mca_perception.ros.node_descriptions import LaunchError, NodeDescription, camera_topics

__all__ = ["TASKS", "task_descriptions"]

TASKS = ("segmentation", "identification", "defects")
"""In the order of the chain."""

_COMMON = ("model", "session", "heartbeat_s", "frame_policy", "parallel_frames", "threads")
_PARAMETERS = {
    "segmentation": (*_COMMON, "score_threshold", "tracking", "camera_info_file"),
    "identification": (*_COMMON, "gallery"),
    "defects": _COMMON,
}

_ANNOTATIONS = ("detections", "overlay/compressed")
_PRODUCTS = ("set_container", "identify_pick", "add_product", "remove_product", "gallery_info")
_DEFECTS = ("inspect_pick", "alarms", "alarms/heat_map/compressed")
_OFFERED = {
    "segmentation": (
        *(
            "instance_mask",
            *_ANNOTATIONS,
            "detections_3d",
            "object_points",
            "label_info",
        ),
        *(f"debug/{figure}_ms" for figure in ("cyclic", "processing", "pipeline")),
        *_PRODUCTS,
        *_DEFECTS,
    ),
    "identification": (*_ANNOTATIONS, *_PRODUCTS),
    "defects": (*_ANNOTATIONS, *_DEFECTS),
}
"""Topics and services in the namespace itself, unless a later task offers them. ``objects`` chain, so they are of the
last task there."""


def task_descriptions(
    namespace: str,
    tasks: Sequence[str],
    values: Mapping[str, Any],
    *,
    image: str = "",
    depth: str = "",
    camera_info: str = "",
) -> list[NodeDescription]:
    """The chain of some tasks.

    Args:
        namespace: of the last node.
        tasks: some of :data:`TASKS`, ``segmentation`` among them.
        values: parameters by name; every node takes those it has.
        image: topic of the images; empty for ``image`` in the namespace.
        depth: topic of the depth images, likewise.
        camera_info: topic of the calibration; empty for the one next to the images.

    Raises:
        LaunchError: a task is unknown, or there is no segmentation.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or "segmentation" not in tasks:
        raise LaunchError(
            f"tasks are {', '.join(tasks) or 'none'}; choose from {', '.join(TASKS)}, segmentation among them"
        )
    chain = [task for task in TASKS if task in tasks]
    base = namespace.rstrip("/")
    camera = (_absolute(topic, base) for topic in (image or "image", depth or "depth", camera_info))
    topics = camera_topics(*camera)
    nodes = []
    for position, task in enumerate(chain):
        parameters = {name: values[name] for name in _PARAMETERS[task] if name in values}
        executable, rules = f"{task}_node", topics
        if task == "segmentation":
            executable = "perception_node"
            parameters |= {"identification": False, "inspection": False}
        else:
            rules = tuple(rule for rule in topics if rule[0].startswith("image"))
            rules += (("segmented/objects", f"{base}/{chain[position - 1]}/objects"),)
            rules += (("segmented/instance_mask", f"{base}/instance_mask"),)
        later = chain[position + 1 :]
        taken = {name for other in later for name in _OFFERED[other]}
        if later:
            rules += tuple((name, f"{base}/{name}") for name in _OFFERED[task] if name not in taken)
        # It exchanges the model of one node, which its name has to tell.
        rules += (("load_model", f"{base}/{task}/load_model"),)
        place = f"{base}/{task}" if later else namespace
        nodes.append(NodeDescription(executable, place, task, parameters, rules, lifecycle=True))
    return nodes


def _absolute(topic: str, base: str) -> str:
    """A topic as it is called in the namespace ``base``, for nodes in others; empty for none."""
    return topic if not topic or topic.startswith("/") else f"{base}/{topic}"
