"""A robot program of its own: a separate process that knows nothing but the message package."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from sensor_msgs.msg import Image
from std_msgs.msg import Header

from mca_perception.ros.images import to_image_message

pytestmark = pytest.mark.xdist_group("test_robot")

Scene = Callable[..., NDArray[np.uint8]]

SUBSCRIBER = """
import json, time
import rclpy
from mca_perception_msgs.msg import PerceivedObjects

def take(message):
    header = message.header
    received.append({
        "sec": header.stamp.sec, "nanosec": header.stamp.nanosec, "frame_id": header.frame_id,
        "products": [item.products[0].product_id for item in message.objects],
        "latency_ms": message.timing.pipeline_latency_ms, "processing_ms": message.timing.processing_ms,
    })

received = []
rclpy.init()
node = rclpy.create_node("robot")
node.create_subscription(PerceivedObjects, "/perception/objects", take, 10)
end = time.monotonic() + 60
while not received and time.monotonic() < end:
    rclpy.spin_once(node, timeout_sec=0.5)
node.destroy_node()
rclpy.shutdown()
print(json.dumps(received))
"""


def test_an_independent_process_receives_objects_with_stamp_and_frame(
    start_node: Callable[..., Any], colour_bundle: Path, colour_gallery: Path, client: Any, scene: Scene
) -> None:
    start_node(
        "perception_node", model=str(colour_bundle), gallery=str(colour_gallery), frame_policy="every_frame"
    )
    robot = subprocess.Popen([sys.executable, "-c", SUBSCRIBER], stdout=subprocess.PIPE, text=True)
    try:
        client.heard(subscribers=1)
        now = client.node.get_clock().now().to_msg()
        publisher = client.publisher(Image, "image")
        publisher.publish(
            to_image_message(scene("red", "blue"), "rgb8", Header(stamp=now, frame_id="tote_camera"))
        )
        output, _ = robot.communicate(timeout=60)
    finally:
        robot.kill()
    (received,) = json.loads(output)
    assert (received["sec"], received["nanosec"], received["frame_id"]) == (
        now.sec,
        now.nanosec,
        "tote_camera",
    )
    assert received["products"] == ["P-red", "P-blue"]
    assert received["latency_ms"] >= received["processing_ms"] > 0
