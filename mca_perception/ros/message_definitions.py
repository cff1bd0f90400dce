"""Definitions of installed message types, as recordings and viewers need them beside the messages."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rosbags.typesys import get_types_from_msg
from rosbags.typesys.store import Typestore

from mca_perception.errors import SourceError

__all__ = ["register_message", "type_name"]


def type_name(kind: Any) -> str:
    """Such as ``sensor_msgs/msg/Image``."""
    package, folder = kind.__module__.split(".")[:2]
    return f"{package}/{folder}/{kind.__name__}"


def register_message(name: str, types: Typestore) -> None:
    """Make a message type and all those in it known, from their installed definitions."""
    if name in types.fielddefs:
        return
    package, _, message = name.split("/")
    text = _definition(package, message)
    found = get_types_from_msg(text, name)
    for part in _used_types(found[name]):
        register_message(part, types)
    types.register({kind: definition for kind, definition in found.items() if kind not in types.fielddefs})


def _used_types(definition: Any) -> list[str]:
    """Names of the message types among the fields of a definition of rosbags: (constants, fields)."""
    names: list[str] = []

    def look(part: Any) -> None:
        if isinstance(part, str):
            if part.count("/") == 2:
                names.append(part)
        elif isinstance(part, (tuple, list)):
            for inner in part:
                look(inner)

    for _, description in definition[1]:
        look(description)
    return names


def _definition(package: str, message: str) -> str:
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    for prefix in filter(None, prefixes):
        file = Path(prefix) / "share" / package / "msg" / f"{message}.msg"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    raise SourceError(
        f"definition of {package}/{message} is not installed; source the ROS workspace, or run make setup"
    )
