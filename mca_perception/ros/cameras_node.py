"""The process ``cameras``: a perception node for each of several cameras, all on one model.

They share the sessions, so the backbone is in memory once, and take turns: a fast camera does not starve a slow one.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from rclpy.node import Node
from rclpy.parameter import Parameter

from mca_perception.errors import McaError
from mca_perception.ros.parameters import NodeParameters
from mca_perception.ros.perception_node import PerceptionNode
from mca_perception.ros.runner import Spinner, run_node
from mca_perception.ros.turns import Turns

__all__ = ["CamerasNode", "main"]

MAX_CAMERAS = 32
_SHARED = ("model", "gallery", "session", "frame_policy", "tracking")


class CamerasNode(Node):
    """Holds the perception nodes; parameters are described in ``docs/ros.md``.

    Attributes:
        nodes: one per camera.
    """

    def __init__(self, **options: Any) -> None:
        """Make the nodes; they load nothing yet.

        Raises:
            McaError: names of cameras or topics cannot be used.
        """
        super().__init__("cameras", **options)
        self.parameters = NodeParameters(self, "cameras")
        cameras, images = list(self.parameters["cameras"]), list(self.parameters["images"])
        _check(cameras, images)
        turns = Turns()
        overrides = [Parameter(name, value=self.parameters[name]) for name in _SHARED]
        self.nodes = [
            PerceptionNode(
                turns=turns,
                namespace=f"{self.get_namespace().rstrip('/')}/{camera}",
                use_global_arguments=False,
                parameter_overrides=overrides,
                cli_args=_remappings(images[number]) if images else None,
            )
            for number, camera in enumerate(cameras)
        ]

    def close(self) -> None:
        """Stop all of them."""
        for node in self.nodes:
            node.close()
            node.destroy_node()


def _remappings(image: str) -> list[str]:
    beside = image.rpartition("/")[0]
    topics = {
        "image": image,
        "image/compressed": f"{image}/compressed",
        "camera_info": f"{beside}/camera_info",
    }
    return ["--ros-args", *(word for name, topic in topics.items() for word in ("-r", f"{name}:={topic}"))]


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


def _run(node: CamerasNode, spinner: Spinner) -> int:
    for perception in node.nodes:
        spinner.add(perception)
        perception.start()
    spinner.spin_until(lambda: False)
    return 0


def main() -> None:
    """Run the nodes until interrupted."""
    sys.exit(run_node(CamerasNode, _run))


if __name__ == "__main__":
    main()
