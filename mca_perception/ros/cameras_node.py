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
            McaError: names of cameras cannot be used, or lists have other lengths.
        """
        super().__init__("cameras", **options)
        cameras = list(self.parameters["cameras"])
        _check(cameras)
        images = self._per_camera("images", len(cameras))
        files = self._per_camera("camera_info_files", len(cameras))
        shared = {name: self.parameters[name] for name in _SHARED}
        batch = self.parameters["batch"]
        # The sessions themselves take turns then, graph by graph.
        sharing = {"turns": None, "batch": batch} if batch > 1 else {}
        for camera, image, file in zip(cameras, images, files, strict=True):
            namespace = f"{self.get_namespace().rstrip('/')}/{camera}"
            topics = camera_topics(image)
            self.hold(
                PerceptionNode,
                NodeDescription(
                    "perception_node", namespace, "perception", {**shared, "camera_info_file": file}, topics
                ),
                **sharing,
            )

    def _per_camera(self, name: str, count: int) -> list[str]:
        """Entries of a parameter that has one for each camera, or none at all."""
        entries = list(self.parameters[name])
        if entries and len(entries) != count:
            raise McaError(f"{name} has {len(entries)} entries for {count} cameras; give one each, or none")
        return entries or [""] * count


def _check(cameras: list[str]) -> None:
    if not 1 <= len(cameras) <= MAX_CAMERAS or len(set(cameras)) != len(cameras):
        raise McaError(f"cameras names {len(cameras)} cameras; give 1 to {MAX_CAMERAS} different names")
    for name in cameras:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise McaError(f"camera {name!r} is no name of a namespace; use letters, digits and underscores")


def main() -> None:
    """Run the nodes until interrupted."""
    run_container(CamerasNode)


if __name__ == "__main__":
    main()
