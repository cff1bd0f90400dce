"""Objects in alarm on topics of their own, with heat maps for those who listen."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from mca_perception_msgs.msg import PerceivedObjects
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from mca_perception.objects import Objects
from mca_perception.pipeline.heat_maps import heat_overlay, place_heat
from mca_perception.ros import qos
from mca_perception.ros.defect_messages import ALARMS
from mca_perception.ros.engine import EngineSlot
from mca_perception.ros.images import to_compressed_message

__all__ = ["MAX_EXPLAINED", "DefectAlarms"]

MAX_EXPLAINED = 4
"""Objects of one frame that get a heat map: the surest ones."""


class DefectAlarms:
    """Publishes ``alarms`` and ``alarms/heat_map/compressed``; silent while the node is not active.

    A heat map sends each crop through the network some forty times, so it is made on a thread beside the frames, and
    for the next alarm only when the last one is done.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._alarms = node.create_lifecycle_publisher(PerceivedObjects, "alarms", qos.RESULTS)
        self._heat_maps = node.create_lifecycle_publisher(
            CompressedImage, "alarms/heat_map/compressed", qos.IMAGE_OUTPUT
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="heat-maps")
        self._pending: Future[None] | None = None
        self._alarmed: list[int] = []

    def publish(self, message: PerceivedObjects) -> None:
        """Publish those objects of a frame that are in alarm, if there are any."""
        self._alarmed = [i for i, entry in enumerate(message.objects) if entry.defect.decision in ALARMS]
        if self._alarmed:
            self._alarms.publish(
                PerceivedObjects(
                    header=message.header,
                    image_width=message.image_width,
                    image_height=message.image_height,
                    container_id=message.container_id,
                    model=message.model,
                    sequence=message.sequence,
                    objects=[message.objects[i] for i in self._alarmed],
                    timing=message.timing,
                )
            )

    def explain(
        self, image: NDArray[np.uint8], objects: Objects, header: Header, engines: EngineSlot
    ) -> None:
        """Start to draw where the evidence for the last frame's alarms lies.

        Nothing is drawn while nobody listens, or the last picture is not done.

        Args:
            image: the frame, uint8 ``[H, W, 3]``.
            objects: those of the last message that was published, in its order.
            header: of the frame.
            engines: the model in use.
        """
        idle = self._pending is None or self._pending.done()
        if objects.defects is None or not self._alarmed or not idle:
            return
        if not self._heat_maps.get_subscription_count():
            return
        certainty = objects.defects[self._alarmed, 1:].sum(axis=1)
        surest = [self._alarmed[i] for i in np.argsort(-certainty)[:MAX_EXPLAINED]]
        self._pending = self._thread.submit(self._draw, image, objects, surest, header, engines)

    def _draw(
        self,
        image: NDArray[np.uint8],
        objects: Objects,
        chosen: Sequence[int],
        header: Header,
        engines: EngineSlot,
    ) -> None:
        try:
            heat = np.zeros(image.shape[:2], np.float32)
            with engines.use() as engine:
                if engine.inspector is None:  # another model has taken over
                    return
                margin = engine.inspector.settings.margin
                for i in chosen:
                    crop = engine.pipeline.object_crop(image, objects, i)
                    found = engine.inspector.heat_map(crop)
                    np.maximum(heat, place_heat(found, objects.boxes[i], margin, image.shape[:2]), out=heat)
            self._heat_maps.publish(to_compressed_message(heat_overlay(image, heat), header))
        except Exception as error:  # on a thread that nobody waits for
            self._node.get_logger().error(f"heat map: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Finish the picture in progress and destroy the publishers."""
        self._thread.shutdown()
        for publisher in (self._alarms, self._heat_maps):
            self._node.destroy_lifecycle_publisher(publisher)
