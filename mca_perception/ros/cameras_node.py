"""The process ``cameras``: a perception node for each of several cameras, all on one model.

They share the sessions, so the backbone is in memory once, and take turns: a fast camera does not starve a slow one.
"""

from __future__ import annotations

import re
from typing import Any

from mca_perception.errors import McaError
from mca_perception.ros.node_container import NodeContainer, run_container
from mca_perception.ros.node_descriptions import NodeDescription, camera_topics
from mca_perception.ros.perception_node import PerceptionNode

__all__ = ["CamerasNode", "main"]

MAX_CAMERAS = 32
_SHARED = ("model", "gallery", "session", "frame_policy", "parallel_frames", "threads", "tracking")


class CamerasNode(NodeContainer):
    """Holds the perception nodes; parameters are described in ``docs/ros.md``."""

    def __init__(self, **options: Any) -> None:
        """Make the nodes; they load nothing yet.

        Raises:
            McaError: names of cameras or topics cannot be used.
        """
        super().__init__("cameras", **options)
        cameras, images = list(self.parameters["cameras"]), list(self.parameters["images"])
        _check(cameras, images)
        shared = {name: self.parameters[name] for name in _SHARED}
        batch = self.parameters["batch"]
        # The sessions themselves take turns then, graph by graph.
        sharing = {"turns": None, "batch": batch} if batch > 1 else {}
        for camera, image in zip(cameras, images or [""] * len(cameras), strict=True):
            namespace = f"{self.get_namespace().rstrip('/')}/{camera}"
            topics = camera_topics(image)
            self.hold(
                PerceptionNode,
                NodeDescription("perception_node", namespace, "perception", shared, topics),
                **sharing,
            )


def _check(cameras: list[str], images: list[str]) -> None:
    if not 1 <= len(cameras) <= MAX_CAMERAS or len(set(cameras)) != len(cameras):
        raise McaError(f"cameras names {len(cameras)} cameras; give 1 to {MAX_CAMERAS} different names")
    for name in cameras:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise McaError(f"camera {name!r} is no name of a namespace; use letters, digits and underscores")
    if images and len(images) != len(cameras):
        raise McaError(
            f"images names {len(images)} topics for {len(cameras)} cameras; give one each, or none"
        )


def main() -> None:
    """Run the nodes until interrupted."""
    run_container(CamerasNode)


if __name__ == "__main__":
    main()
