"""The perception node's publishers; what comes beside the objects is made only when somebody looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mca_perception_msgs.msg import FrameTiming, PerceivedObjects
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Float64, Header
from vision_msgs.msg import Detection3DArray, LabelInfo

from mca_perception.objects import Objects
from mca_perception.pipeline.surfaces import Surface
from mca_perception.ros import conversions, qos
from mca_perception.ros.annotations import Annotations
from mca_perception.ros.defect_alarms import DefectAlarms
from mca_perception.ros.parameters import NodeParameters

__all__ = ["Outputs"]


class Outputs:
    """Lifecycle publishers of the perception node; silent while it is not active.

    Attributes:
        annotations: detections and overlay.
        alarms: the objects that something is wrong with.
    """

    def __init__(self, node: LifecycleNode, parameters: NodeParameters) -> None:
        self._node = node
        self._parameters = parameters
        create = node.create_lifecycle_publisher
        self._objects = create(PerceivedObjects, "objects", qos.RESULTS)
        self._mask = create(Image, "instance_mask", qos.IMAGE_OUTPUT)
        self._label_info = create(LabelInfo, "label_info", qos.LATCHED)
        self._detections_3d = create(Detection3DArray, "detections_3d", qos.RESULTS)
        self._points = create(PointCloud2, "object_points", qos.IMAGE_OUTPUT)
        self.annotations = Annotations(node, parameters)
        self.alarms = DefectAlarms(node)
        self._debug = {
            name: create(Float64, f"debug/{name}_ms", qos.RESULTS)
            for name in ("cyclic", "processing", "pipeline")
        }

    def publish_labels(self, label_names: tuple[str, ...], threshold: float) -> None:
        """Publish the class names, for every subscriber now and later."""
        header = Header(stamp=self._node.get_clock().now().to_msg())
        self._label_info.publish(conversions.to_label_info(label_names, threshold, header))

    def publish_objects(
        self,
        objects: Objects,
        frame: conversions.FrameInfo,
        *,
        received_ns: int,
        queue_ms: float,
        surfaces: Sequence[Surface | None] | None = None,
    ) -> PerceivedObjects:
        """Publish the objects of one frame.

        Args:
            objects: best score first.
            frame: what else is known.
            received_ns: arrival at the node.
            queue_ms: waiting time in the node.
            surfaces: one per object, where they were measured.

        Returns:
            What went out, with its timing.
        """
        message = conversions.to_perceived_objects(objects, frame, FrameTiming(), surfaces)
        message.timing = conversions.to_frame_timing(
            objects.timings_ms,
            stamp=frame.header.stamp,
            received_ns=received_ns,
            published_ns=self._node.get_clock().now().nanoseconds,
            queue_ms=queue_ms,
        )
        self._objects.publish(message)
        return message

    # Without asking who listens the middleware would serialise and keep messages for nobody: 12 MB of copies for a
    # mask of 1080p.

    def publish_mask(self, objects: Objects, header: Header) -> None:
        """Publish the instance mask, if it is wanted and somebody listens."""
        if self._parameters["publish_mask"] and self._mask.get_subscription_count():
            self._mask.publish(conversions.to_instance_mask(objects, header))

    def publish_detections_3d(
        self, objects: Objects, surfaces: Sequence[Surface | None] | None, header: Header
    ) -> None:
        """Publish the boxes in space where objects were measured, if somebody listens."""
        if surfaces is not None and self._detections_3d.get_subscription_count():
            self._detections_3d.publish(conversions.to_detections_3d(objects, surfaces, header))

    def publish_points(
        self,
        image: NDArray[np.uint8],
        objects: Objects,
        surfaces: Sequence[Surface | None] | None,
        header: Header,
    ) -> None:
        """Publish the measured points, if somebody listens."""
        if surfaces is not None and self._points.get_subscription_count():
            self._points.publish(conversions.to_object_points(objects, surfaces, image, header))

    def publish_latencies(self, milliseconds: Mapping[str, float]) -> None:
        """Publish the figures ``cyclic``, ``processing`` and ``pipeline`` to those who listen."""
        for name, value in milliseconds.items():
            if self._debug[name].get_subscription_count():
                self._debug[name].publish(Float64(data=value))

    def facts(self) -> dict[str, Any]:
        """Keys and values for the diagnostics: who listens, and what was drawn for them."""
        return {
            "objects_subscribers": self._objects.get_subscription_count(),
            **self.annotations.facts(),
        }

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in (
            *(self._objects, self._mask, self._label_info),
            *(self._detections_3d, self._points, *self._debug.values()),
        ):
            self._node.destroy_lifecycle_publisher(publisher)
        self.annotations.close()
        self.alarms.close()
