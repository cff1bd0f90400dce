"""Gives a virtual environment the ROS 2 installation it was made for, without sourcing anything.

The set-up copies this file and a `.pth` file that imports it into the environment, and writes
`ros_underlay.json` beside it: the variables that the setup files of ROS and of the message workspace set.
When the environment's Python starts, those variables are put in front of the user's own, and Python starts
again, because the dynamic loader reads LD_LIBRARY_PATH only then. Child processes inherit the result.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

GUARD = "_MCA_ROS_UNDERLAY"
LISTS = (
    "AMENT_PREFIX_PATH",
    "CMAKE_PREFIX_PATH",
    "COLCON_PREFIX_PATH",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONPATH",
)


def merge(recorded: Mapping[str, str], current: Mapping[str, str]) -> dict[str, str]:
    """Put recorded variables into an environment: path lists in front, others only where unset.

    Args:
        recorded: variables that the setup files set.
        current: the environment of this process.

    Returns:
        The environment to use. Entries of a path list stand in it once.
    """
    merged = dict(current)
    for name, value in recorded.items():
        if name in LISTS:
            entries = value.split(os.pathsep) + current.get(name, "").split(os.pathsep)
            merged[name] = os.pathsep.join(dict.fromkeys(entry for entry in entries if entry))
        else:
            merged.setdefault(name, value)
    return merged


def activate() -> None:
    """Start this interpreter again inside the recorded environment, unless it is already there."""
    record = Path(__file__).with_name("ros_underlay.json")
    if os.environ.get(GUARD) == sys.prefix or not record.is_file():
        return
    environment = merge(json.loads(record.read_text()), os.environ)
    environment[GUARD] = sys.prefix
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 (no shell is wanted)


activate()
