"""Crisis node: categorises posts from disasters.

`ros2 launch mca_perception crisis.launch.py --show-args` lists the arguments; `mca up crisis` starts the same process
where the launch packages are not installed. Both read `mca_perception/ros/descriptions.py`.
"""

from mca_perception.ros.launch_files import launch_description


def generate_launch_description():
    """Declare the arguments; the node follows from their values."""
    return launch_description("crisis")
