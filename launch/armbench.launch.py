"""Perception node with an optional image source and viewer.

`ros2 launch mca_perception armbench.launch.py --show-args` lists the arguments; `mca up armbench` starts the
same processes where the launch packages are not installed. Both read `mca_perception/ros/descriptions.py`.
"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch_ros.actions import Node

from launch import LaunchDescription
from mca_perception.ros.descriptions import ARMBENCH_ARGUMENTS, armbench
from mca_perception.ros.transport import configure_transport


def start_nodes(context):
    """Turn the shared description into launch actions."""
    arguments = {a.name: context.launch_configurations[a.name] for a in ARMBENCH_ARGUMENTS}
    return [
        Node(
            package="mca_perception",
            executable=node.executable,
            namespace=node.namespace,
            name=node.name,
            parameters=[node.parameters],
            remappings=list(node.remappings),
            output="screen",
            on_exit=[Shutdown(reason=f"{node.name} ended")] if node.ends_launch else None,
        )
        for node in armbench(arguments)
    ]


def generate_launch_description():
    """Declare the arguments; the nodes follow from their values."""
    configure_transport()
    declared = [
        DeclareLaunchArgument(
            a.name, default_value=a.default, description=a.description, choices=a.choices or None
        )
        for a in ARMBENCH_ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start_nodes)])
