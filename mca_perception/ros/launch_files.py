"""From the shared descriptions to what `ros2 launch` wants; needs the launch packages of a ROS 2 installation."""

from __future__ import annotations

from typing import Any

from mca_perception.ros.descriptions import LAUNCHES, RESPAWN_DELAY_S, LaunchError, NodeDescription
from mca_perception.ros.respawns import Respawns
from mca_perception.ros.transport import configure_transport
from mca_perception.ros.views import check_installed

__all__ = ["launch_description"]


def launch_description(name: str) -> Any:
    """The launch description of a name in :data:`LAUNCHES`: arguments, and nodes that follow from their values."""
    # Here, because there are no wheels of the launch packages: the rest of this folder works without them.
    from launch.actions import DeclareLaunchArgument, OpaqueFunction
    from launch.launch_description import LaunchDescription

    configure_transport()
    declared, describe = LAUNCHES[name]

    def start_nodes(context: Any) -> list[Any]:
        nodes = describe({a.name: context.launch_configurations[a.name] for a in declared})
        check_installed(nodes)
        return [_process(node, Respawns(node)) for node in nodes]

    actions = [
        DeclareLaunchArgument(
            a.name, default_value=a.default, description=a.description, choices=a.choices or None
        )
        for a in declared
    ]
    return LaunchDescription([*actions, OpaqueFunction(function=start_nodes)])


def _process(node: NodeDescription, respawns: Respawns) -> Any:
    """The action that runs a node, and what follows when it ends.

    launch's own ``respawn`` would also start a node again that refuses its parameters, for ever.
    """
    from launch.actions import Shutdown, TimerAction
    from launch_ros.actions import Node

    def ended(event: Any, context: Any) -> list[Any]:
        if context.is_shutdown:
            return []
        if respawns.allow(event.returncode):
            return [TimerAction(period=RESPAWN_DELAY_S, actions=[_process(node, respawns)])]
        if node.optional:
            return []
        if event.returncode:  # raised, so that `ros2 launch` itself ends with code 1
            raise LaunchError(f"node {node.name} ended with code {event.returncode}; its last lines tell why")
        return [Shutdown(reason=f"{node.name} ended")] if node.ends_launch else []

    return Node(
        package=node.package,
        executable=node.executable,
        namespace=node.namespace,
        name=node.name,
        arguments=list(node.arguments),
        parameters=[node.parameters] if node.parameters else [],
        remappings=list(node.remappings),
        output="screen",
        on_exit=ended,
    )
