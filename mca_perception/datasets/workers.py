"""Set-up of data-loading worker processes."""

from __future__ import annotations

import signal

import cv2

# A plain fork of a process with running compute threads can deadlock the child on a lock that one of them held.
WORKER_CONTEXT = "forkserver"


def initialise_worker(_: int) -> None:
    """One OpenCV thread per worker; Ctrl-C is for the main process, which saves before it stops."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
