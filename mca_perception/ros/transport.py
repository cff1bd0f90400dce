"""Middleware and memory settings that large images need. Called by every node before ``rclpy.init``.

With Fast DDS' defaults the shared-memory segment holds 512 kB: larger best-effort images between processes
are lost and reliable ones arrive late. ``config/fastdds.xml`` enlarges the segment. It also makes writers ask
for missing acknowledgements ten times a second instead of every 3 s, so that a node that has sent everything
ends at once. glibc in turn gives every image-sized block back to the kernel, so that each frame pays for its
page faults again; :func:`tune_malloc` keeps the blocks.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from mca_perception.errors import McaError
from mca_perception.resources import resource_path

__all__ = ["PROFILE_VARIABLE", "configure_transport", "prepare_process", "tune_malloc"]

PROFILE_VARIABLE = "FASTDDS_DEFAULT_PROFILES_FILE"
_OTHER_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_BUILTIN_TRANSPORTS")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Fast DDS keeps its segments
_NEEDED_SHARED_MEMORY = 512 << 20  # one 128 MiB segment for each of up to four processes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # numbers of mallopt's parameters in malloc.h


def configure_transport() -> str:
    """Select the large-message profile, unless the user chose a transport or the machine cannot carry it.

    Must run before ``rclpy.init``; child processes inherit the choice.

    Returns:
        What was chosen and why, as one line for the log.
    """
    for variable in (PROFILE_VARIABLE, *_OTHER_VARIABLES):
        if os.environ.get(variable):
            return f"transport: as set by {variable}={os.environ[variable]}"
    try:
        profile = resource_path("config/fastdds.xml")
    except McaError as error:
        return f"transport: middleware defaults ({error})"
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else 0
    if free < _NEEDED_SHARED_MEMORY:
        return (
            f"transport: middleware defaults, large images may be lost: {_SHARED_MEMORY} has "
            f"{free >> 20} MiB free, {_NEEDED_SHARED_MEMORY >> 20} are needed (containers: --shm-size=1g)"
        )
    os.environ[PROFILE_VARIABLE] = str(profile)
    return f"transport: shared memory for large messages ({profile})"


def tune_malloc() -> bool:
    """Keep image-sized blocks in the process instead of returning them to the kernel after every frame.

    Returns:
        Whether the C library took the settings (glibc does; others are left as they are).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 128 << 20))
    taken = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(taken)


def prepare_process() -> str:
    """Apply both settings; returns the line for the log."""
    tune_malloc()
    return configure_transport()
