"""Ends what a test has started, when the test has failed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any


def kill_with_children(process: subprocess.Popen[Any]) -> None:
    """End a process that hangs, and the nodes it started: each has a session of its own."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(OSError):  # it has ended, and with it its nodes
        for child in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.wait(10)
