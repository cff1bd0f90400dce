"""A camera: publishes one picture again and again, stamped with the time of sending.

Ends, when it is asked to as well, with the milliseconds that each call of ``publish`` took, by stamp, as JSON.
"""

from __future__ import annotations

import json
import sys
import time

import cv2
import numpy as np
import rclpy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from mca_perception.ros import qos
from mca_perception.ros.conversions import time_message
from mca_perception.ros.images import to_compressed_message, to_image_message
from mca_perception.ros.runner import StopSignal
from mca_perception.ros.transport import prepare_process

KEPT = 1000
"""Calls of which the duration is kept."""


def main() -> None:
    """Arguments: topic, width, height, raw or jpeg, frames, frames per second."""
    topic, width, height, encoding, frames, rate_hz = sys.argv[1:7]
    stop = StopSignal()
    prepare_process()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("bench_camera")
    raw = encoding == "raw"
    publisher = node.create_publisher(
        Image if raw else CompressedImage, topic if raw else f"{topic}/compressed", qos.IMAGE_OUTPUT
    )
    coarse = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = np.asarray(
        cv2.resize(coarse, (int(width), int(height)), interpolation=cv2.INTER_CUBIC), np.uint8
    )
    header = Header(frame_id="camera")
    message = to_image_message(picture, "rgb8", header) if raw else to_compressed_message(picture, header)
    end = time.monotonic() + 60
    while not (publisher.get_subscription_count() or stop.is_received()) and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.1)
    time.sleep(1.5)  # every reader is connected, on the slowest machine too
    period, next_time = 1 / float(rate_hz), time.monotonic()
    publish_ms: dict[int, float] = {}
    sent = 0
    while sent < int(frames) and not stop.is_received():
        time.sleep(max(0.0, next_time - time.monotonic()))
        next_time += period
        stamp = node.get_clock().now().nanoseconds
        message.header.stamp = time_message(stamp)
        started = time.perf_counter()
        publisher.publish(message)
        sent += 1
        if sent <= KEPT:
            publish_ms[stamp] = (time.perf_counter() - started) * 1e3
    time.sleep(1.0)  # what is reliable may be asked for again
    print(json.dumps({"sent": sent, "publish_ms": publish_ms}))
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
