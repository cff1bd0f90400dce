"""Set-up of data-loading worker processes."""

from __future__ import annotations

import signal

import cv2


def initialise_worker(_: int) -> None:
    """One OpenCV thread per worker; Ctrl-C is for the main process, which saves before it stops."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
