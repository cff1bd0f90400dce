"""The process ``tasks``: segmentation, identification and defects as nodes of their own, all on one model."""

from __future__ import annotations

from typing import Any

from mca_perception.ros.defects_node import DefectsNode
from mca_perception.ros.identification_node import IdentificationNode
from mca_perception.ros.node_container import NodeContainer, run_container
from mca_perception.ros.perception_node import PerceptionNode
from mca_perception.ros.task_descriptions import task_descriptions

__all__ = ["TasksNode", "main"]

_KINDS = {
    "perception_node": PerceptionNode,
    "identification_node": IdentificationNode,
    "defects_node": DefectsNode,
}
_SHARED = (
    *("model", "gallery", "session", "frame_policy", "parallel_frames", "threads"),
    *("score_threshold", "tracking", "camera_info_file"),
)


class TasksNode(NodeContainer):
    """Holds one node per task; parameters are described in ``docs/ros.md``."""

    def __init__(self, **options: Any) -> None:
        """Make the nodes; they load nothing yet.

        Raises:
            LaunchError: the parameter ``tasks`` names an unknown task, or no segmentation.
        """
        super().__init__("tasks", **options)
        values = {name: self.parameters[name] for name in _SHARED}
        camera = {name: self.parameters[name] for name in ("image", "depth", "camera_info")}
        chain = task_descriptions(self.get_namespace(), list(self.parameters["tasks"]), values, **camera)
        for description in chain:
            self.hold(_KINDS[description.executable], description)


def main() -> None:
    """Run the nodes until interrupted."""
    run_container(TasksNode)


if __name__ == "__main__":
    main()
