"""One writer per store: a lock on a file, which the system releases when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from mca_perception.errors import RetrievalError

__all__ = ["WriteLock"]


class WriteLock:
    """Held from construction to :meth:`release`.

    Raises:
        RetrievalError: another process, or this one, holds it, or the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RetrievalError(
                f"store {path.parent} cannot be written ({error.strerror}); make the folder writable"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise RetrievalError(
                f"store {path.parent} is being written by process {holder}; wait for it to end, or stop it"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the number is for messages only
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another writer in; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
