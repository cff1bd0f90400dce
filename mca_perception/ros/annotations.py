"""What shows objects to people and to standard tools: the overlay picture and the detections."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from mca_perception.objects import Objects
from mca_perception.ros import conversions, qos
from mca_perception.ros.images import to_compressed_message
from mca_perception.ros.overlay import draw_overlay
from mca_perception.ros.parameters import NodeParameters

__all__ = ["Annotations"]


class Annotations:
    """Lifecycle publishers of ``detections`` and ``overlay/compressed``; each is made only while somebody listens."""

    def __init__(self, node: LifecycleNode, parameters: NodeParameters) -> None:
        """Create the publishers.

        Args:
            node: publishes.
            parameters: ``overlay_rate_hz``, ``overlay_max_side`` and ``overlay_quality`` are asked for.
        """
        self._node = node
        self._parameters = parameters
        self._next_overlay = 0.0
        self._overlays_drawn = 0
        self._detections = node.create_lifecycle_publisher(Detection2DArray, "detections", qos.RESULTS)
        self._overlay = node.create_lifecycle_publisher(
            CompressedImage, "overlay/compressed", qos.IMAGE_OUTPUT
        )

    def publish_detections(self, objects: Objects, header: Header) -> None:
        """Publish the objects as detections, if somebody listens."""
        if self._detections.get_subscription_count():
            self._detections.publish(conversions.to_detections(objects, header))

    def publish_overlay(self, image: NDArray[np.uint8], objects: Objects, header: Header) -> bool:
        """Draw and publish the overlay, unless nobody listens or the last one is too recent.

        Returns:
            Whether it was drawn.
        """
        now = time.monotonic()
        if not self._overlay.get_subscription_count() or now < self._next_overlay:
            return False
        rate = self._parameters["overlay_rate_hz"]
        self._next_overlay = now + 1 / rate if rate else 0.0
        self._overlays_drawn += 1
        picture = draw_overlay(image, objects, max_side=self._parameters["overlay_max_side"])
        self._overlay.publish(
            to_compressed_message(picture, header, quality=self._parameters["overlay_quality"])
        )
        return True

    def facts(self) -> dict[str, Any]:
        """Keys and values for the diagnostics: who looks at overlays, and how many were drawn for them."""
        return {
            "overlay_subscribers": self._overlay.get_subscription_count(),
            "overlays_drawn": self._overlays_drawn,
        }

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in (self._detections, self._overlay):
            self._node.destroy_lifecycle_publisher(publisher)
