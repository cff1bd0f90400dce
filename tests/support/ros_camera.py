"""A camera as a process of its own, which can be killed."""

from __future__ import annotations

import subprocess
import sys

CAMERA = """
import sys
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

rclpy.init()
node = rclpy.create_node("camera")
profile = QoSProfile(depth=5, reliability=ReliabilityPolicy[sys.argv[1]])
publisher = node.create_publisher(Image, sys.argv[2], profile)
message = Image(height=96, width=160, encoding="mono8", step=160, data=bytes(96 * 160))
message.header.frame_id = sys.argv[3]
def publish():
    message.header.stamp = node.get_clock().now().to_msg()
    publisher.publish(message)
node.create_timer(0.05, publish)
while rclpy.ok():
    rclpy.spin_once(node, timeout_sec=1.0)
"""


def start_camera(reliability: str, topic: str, frame_id: str) -> subprocess.Popen[bytes]:
    """Publish black images of 160 x 96 pixels twenty times a second; quality of service `RELIABLE` or `BEST_EFFORT`."""
    return subprocess.Popen([sys.executable, "-c", CAMERA, reliability, topic, frame_id])
