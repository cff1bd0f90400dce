"""Writes messages into rosbag2 recordings (mcap, sqlite3) without rosbag2."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_typestore

from mca_perception.errors import SourceError
from mca_perception.ros.message_definitions import register_message, type_name

__all__ = ["Recording"]


class Recording:
    """A bag that is being written. Use it in a ``with`` statement; after an error nothing is left behind."""

    def __init__(self, path: Path, *, storage: str = "mcap") -> None:
        """Name a recording.

        Args:
            path: its folder, which must not exist yet.
            storage: ``mcap`` or ``sqlite3``.
        """
        self._path = path
        self._partial = path.with_name(f".{path.name}.part")
        self._storage = StoragePlugin[storage.upper()]
        self._types = get_typestore(Stores.ROS2_HUMBLE)
        self._connections: dict[str, Any] = {}
        self._writer: Writer | None = None

    def __enter__(self) -> Recording:
        if self._path.exists():
            raise SourceError(f"recording {self._path} exists already; choose another name or remove it")
        shutil.rmtree(self._partial, ignore_errors=True)
        with _named(self._path):
            self._writer = Writer(self._partial, version=9, storage_plugin=self._storage)
            self._writer.open()
        return self

    def write(self, topic: str, message: Any, time_ns: int) -> None:
        """Add a message.

        Args:
            topic: where it was, or would have been, published.
            message: of any installed message package.
            time_ns: time of the recording.

        Raises:
            SourceError: the disk is full, or the message's definition is not installed.
        """
        assert self._writer is not None
        with _named(self._path):
            if topic not in self._connections:
                kind = type_name(type(message))
                register_message(kind, self._types)
                self._connections[topic] = self._writer.add_connection(topic, kind, typestore=self._types)
            self._writer.write(self._connections[topic], time_ns, serialize_message(message))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._writer is not None
        try:
            with _named(self._path):
                self._writer.close()
            if error is None:
                self._partial.rename(self._path)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, WriterError) as error:
        raise SourceError(f"recording {path} cannot be written ({error})") from error
