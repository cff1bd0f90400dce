"""Recordings for tests, whole and damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


def write_bag(
    path: Path,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    plugin: StoragePlugin,
    kind: str = RAW,
    topics: int = 1,
) -> None:
    """A bag with the pictures at 10 Hz, stamped from 1000 s on, in frame `bin`."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        for topic in range(topics):
            connection = writer.add_connection(f"/camera{topic}/image", kind, typestore=store)
            for i, picture in enumerate(pictures):
                stamp = types["builtin_interfaces/msg/Time"](sec=1000, nanosec=i * 100_000_000)
                header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="bin")
                if kind == RAW:
                    height, width = picture.shape[:2]
                    message = types[RAW](header, height, width, "rgb8", 0, width * 3, picture.reshape(-1))
                else:
                    message = types[COMPRESSED](header, "png", cv2.imencode(".png", picture[..., ::-1])[1])
                writer.write(connection, i * 100_000_000, store.serialize_cdr(message, kind))


def damage(path: Path, start: float, size: int) -> None:
    """Overwrite so many bytes of a file from a share of its length on."""
    content = bytearray(path.read_bytes())
    begin = int(start * len(content))
    content[begin : begin + size] = b"\xff" * size
    path.write_bytes(content)
