"""A node as many are written: a queue of 10, conversion by copies, the model inside the image callback."""

from __future__ import annotations

import sys
from typing import Any

import cv2
import numpy as np
import rclpy
from mca_perception_msgs.msg import FrameTiming, PerceivedObjects
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image

from mca_perception.pipeline import PerceptionPipeline
from mca_perception.ros import conversions
from mca_perception.ros.runner import StopSignal

STEPS = ("backbone", "segmentation", "identification")


def to_array(message: Image) -> np.ndarray[Any, Any]:
    """As cv_bridge does: a copy with the channels in OpenCV's order."""
    picture = np.ndarray((message.height, message.width, 3), np.uint8, bytes(message.data))
    return cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)


def to_message(picture: np.ndarray[Any, Any], encoding: str) -> Image:
    """As cv_bridge does: through ``tobytes``."""
    message = Image(encoding=encoding, height=picture.shape[0], width=picture.shape[1])
    message.data.frombytes(picture.tobytes())
    message.step = len(message.data) // message.height
    return message


def main() -> None:
    """Arguments: model bundle, namespace."""
    pipeline = PerceptionPipeline.from_bundle(sys.argv[1])
    stop = StopSignal()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("habit", namespace=sys.argv[2])
    objects_publisher = node.create_publisher(PerceivedObjects, "objects", 10)
    mask_publisher = node.create_publisher(Image, "instance_mask", 10)
    sequence = 0

    def perceive(picture: np.ndarray[Any, Any], header: Any) -> None:
        nonlocal sequence
        objects = pipeline.perceive(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        info = conversions.FrameInfo(header, "", "", sequence)
        steps = {f"{step}_ms": float(objects.timings_ms[step]) for step in STEPS}
        timing = FrameTiming(processing_ms=float(objects.timings_ms["total"]), **steps)
        objects_publisher.publish(conversions.to_perceived_objects(objects, info, timing))
        mask = (
            objects.instance_mask
            if objects.instance_mask is not None
            else np.zeros(picture.shape[:2], np.uint16)
        )
        mask_message = to_message(mask, "mono16")
        mask_message.header = header
        mask_publisher.publish(mask_message)
        sequence += 1

    def on_image(message: Image) -> None:
        perceive(to_array(message), message.header)

    def on_compressed(message: CompressedImage) -> None:
        data = np.frombuffer(bytes(message.data), np.uint8)
        perceive(cv2.imdecode(data, cv2.IMREAD_COLOR), message.header)

    node.create_subscription(Image, "image", on_image, 10)
    node.create_subscription(CompressedImage, "image/compressed", on_compressed, 10)
    while not stop.is_received():
        rclpy.spin_once(node, timeout_sec=0.2)
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
