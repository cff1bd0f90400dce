"""Several cameras in one process, on one model: `ros2 launch mca_perception multi_camera.launch.py --show-args`."""

from mca_perception.ros.launch_files import launch_description


def generate_launch_description():
    """Declare the arguments; the process follows from their values."""
    return launch_description("multi_camera")
