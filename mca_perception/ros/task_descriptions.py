"""Segmentation, identification and defects as nodes of their own. Imports neither rclpy nor launch.

They chain: identification reads what segmentation found, defects what identification wrote. The last one stands where
the node ``perception`` would, with its topics and services; those before it have namespaces of their own below.
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
    topics = camera_topics(image or f"{base}/image", depth or f"{base}/depth", camera_info)
    images = tuple(rule for rule in topics if rule[0].startswith("image"))
    nodes = []
    for before, task in zip(["", *chain], chain, strict=False):
        parameters = {name: values[name] for name in _PARAMETERS[task] if name in values}
        mask = f"{base}/instance_mask"
        rules = (
            (*topics, ("instance_mask", mask))
            if task == "segmentation"
            else (
                *images,
                ("segmented/objects", f"{base}/{before}/objects"),
                ("segmented/instance_mask", mask),
            )
        )
        if task == "segmentation":
            parameters |= {"identification": False, "inspection": False}
        executable = "perception_node" if task == "segmentation" else f"{task}_node"
        place = namespace if task == chain[-1] else f"{base}/{task}"
        nodes.append(NodeDescription(executable, place, task, parameters, rules, lifecycle=True))
    return nodes
