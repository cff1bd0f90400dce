"""Images of rosbag2 recordings: folders, ``.mcap`` and ``.db3`` files, read without a ROS installation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

from mca_perception.errors import InvalidImageError, SourceError, error_text
from mca_perception.ros.image_headers import encoded_size
from mca_perception.ros.images import decode_image
from mca_perception.ros.sources import Frame

__all__ = ["BagSource"]

_REPAIR = "repair it (`mcap recover`, sqlite3's `.recover`)"

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


class BagSource:
    """The images of one topic, in the order and with the timing of the recording.

    A damaged recording gives the images before the damage, then a :class:`SourceError`; those after it are skipped.
    """

    live = False

    def __init__(self, path: Path, *, topic: str = "") -> None:
        """Open a bag.

        Args:
            path: rosbag2 folder, ``.mcap`` or ``.db3`` file.
            topic: image topic; empty for the only one.

        Raises:
            SourceError: not a readable bag, or the topic is not in it or not unique.
        """
        self.skipped = 0
        self._path = path
        try:
            # Bags carry their message definitions since Iron; the standard images did not change before.
            self._reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
            self._reader.open()
        except Exception as error:  # damaged bytes: whatever the decoders make of them
            raise SourceError(
                f"bag {path} cannot be read ({error}); give a complete rosbag2 recording, or {_REPAIR}"
            ) from error
        try:
            self._connection = self._choose(path, topic)
        except SourceError:
            self._reader.close()
            raise
        count = self._connection.msgcount
        self.description = f"{count} images on {self._connection.topic} of bag {path}"

    def _choose(self, path: Path, topic: str) -> Connection:
        images = {c.topic: c for c in self._reader.connections if c.msgtype in (RAW, COMPRESSED)}
        listed = ", ".join(images) or "none"
        if topic:
            if topic not in images:
                raise SourceError(f"bag {path} has no image topic {topic} (image topics: {listed})")
            return images[topic]
        if len(images) != 1:
            remedy = "choose one with `topic`" if images else "give a bag with images"
            raise SourceError(f"bag {path} has {len(images)} image topics ({listed}); {remedy}")
        return next(iter(images.values()))

    def __iter__(self) -> Iterator[Frame]:
        for index, (connection, time_ns, raw) in enumerate(self._messages()):
            try:
                message = self._reader.deserialize(raw, connection.msgtype)
                yield _frame(message, connection, index, time_ns)
            except (InvalidImageError, AnyReaderError):
                self.skipped += 1

    def _messages(self) -> Iterator[tuple[Connection, int, bytes]]:
        """Connection, time in ns and bytes of each message.

        Raises:
            SourceError: there are fewer than the recording says; the missing ones count as skipped.
        """
        read, recorded = 0, self._connection.msgcount
        reason: Exception | None = None
        try:
            for message in self._reader.messages(connections=[self._connection]):
                yield message
                read += 1
        except Exception as error:  # damaged bytes: whatever the decoders make of them
            reason = error
        if reason is None and read >= recorded:
            return
        self.skipped += max(recorded - read, 1)
        what = error_text(reason) if reason else "its index does not fit its content"
        raise SourceError(
            f"bag {self._path} is damaged: {read} of {recorded} images can be read ({what}); "
            f"copy it again, or {_REPAIR}"
        ) from reason

    def close(self) -> None:
        """Close the bag."""
        self._reader.close()


def _frame(message: Any, connection: Connection, index: int, time_ns: int) -> Frame:
    header = message.header
    recorded: dict[str, Any] = {
        "name": f"{connection.topic}:{index}",
        "time_ns": time_ns,
        "stamp_ns": header.stamp.sec * 1_000_000_000 + header.stamp.nanosec,
        "frame_id": header.frame_id,
    }
    if connection.msgtype == COMPRESSED:
        data = bytes(message.data)
        encoded_size(data)
        return Frame(encoded=data, **recorded)
    return Frame(pixels=decode_image(message), **recorded)
