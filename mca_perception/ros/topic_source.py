"""Images of a running camera, taken from its topic."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sensor_msgs.msg import CompressedImage, Image

from mca_perception.errors import InvalidImageError, SourceError
from mca_perception.ros import qos
from mca_perception.ros.conversions import stamp_ns
from mca_perception.ros.images import decode_compressed, decode_image
from mca_perception.ros.private_node import private_node
from mca_perception.ros.sources import Frame
from mca_perception.ros.transport import prepare_process

__all__ = ["TopicSource"]


class TopicSource:
    """The newest image of a topic, every now and then."""

    live = True

    def __init__(self, topic: str, *, count: int, interval_s: float = 1.0, patience_s: float = 30.0) -> None:
        """Name a topic.

        Args:
            topic: raw images, or compressed ones on a name that ends in ``/compressed``.
            count: images to take.
            interval_s: seconds between two images.
            patience_s: seconds to wait for an image.
        """
        self.description = f"{count} images of topic {topic}"
        self.skipped = 0
        self._topic, self._count = topic, count
        self._interval_s, self._patience_s = interval_s, patience_s

    def __iter__(self) -> Iterator[Frame]:
        """Yield the images.

        Raises:
            SourceError: nothing is published.
        """
        prepare_process()
        newest: list[Image | CompressedImage] = []

        def take(message: Image | CompressedImage) -> None:
            newest[:] = [message]

        kind = CompressedImage if self._topic.endswith("/compressed") else Image
        with private_node("_topic_source") as (node, executor):
            node.create_subscription(kind, self._topic, take, qos.CAMERA)
            for number in range(self._count):
                newest.clear()
                end = time.monotonic() + self._patience_s
                while not newest:
                    if time.monotonic() > end:
                        raise SourceError(
                            f"topic {self._topic} sent no image for {self._patience_s:g} s; start the camera"
                        )
                    executor.spin_once(timeout_sec=0.1)
                message = newest[0]
                try:
                    pixels = decode_image(message) if kind is Image else decode_compressed(message)
                except InvalidImageError:
                    self.skipped += 1
                    continue
                yield Frame(
                    f"{self._topic}:{number}",
                    pixels=pixels,
                    stamp_ns=stamp_ns(message.header.stamp),
                    frame_id=message.header.frame_id,
                )
                pause = time.monotonic() + self._interval_s
                while time.monotonic() < pause:
                    executor.spin_once(timeout_sec=max(0.0, pause - time.monotonic()))

    def close(self) -> None:
        """Every iteration closes its own node."""
