"""Perception node with an optional image source and viewer.

`ros2 launch mca_perception armbench.launch.py --show-args` lists the arguments; `mca up armbench` starts the
same processes where the launch packages are not installed. Both read `mca_perception/ros/descriptions.py`.
"""

from mca_perception.ros.launch_files import launch_description


def generate_launch_description():
    """Declare the arguments; the nodes follow from their values."""
    return launch_description("armbench")
