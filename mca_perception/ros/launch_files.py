"""From the shared descriptions to what `ros2 launch` wants; needs the launch packages of a ROS 2 installation."""

from __future__ import annotations

from typing import Any

from mca_perception.ros.descriptions import LAUNCHES, RESPAWN_DELAY_S
from mca_perception.ros.transport import configure_transport

__all__ = ["launch_description"]


def launch_description(name: str) -> Any:
    """The launch description of a name in :data:`LAUNCHES`: arguments, and nodes that follow from their values."""
    # Here, because there are no wheels of the launch packages: the rest of this folder works without them.
    from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
    from launch.launch_description import LaunchDescription
    from launch_ros.actions import Node

    configure_transport()
    declared, describe = LAUNCHES[name]

    def start_nodes(context: Any) -> list[Any]:
        arguments = {a.name: context.launch_configurations[a.name] for a in declared}
        return [
            Node(
                package="mca_perception",
                executable=node.executable,
                namespace=node.namespace,
                name=node.name,
                parameters=[node.parameters],
                remappings=list(node.remappings),
                output="screen",
                respawn=node.respawn,
                respawn_delay=RESPAWN_DELAY_S,
                on_exit=[Shutdown(reason=f"{node.name} ended")] if node.ends_launch else None,
            )
            for node in describe(arguments)
        ]

    actions = [
        DeclareLaunchArgument(
            a.name, default_value=a.default, description=a.description, choices=a.choices or None
        )
        for a in declared
    ]
    return LaunchDescription([*actions, OpaqueFunction(function=start_nodes)])
