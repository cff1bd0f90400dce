"""Starts a launch description with plain child processes, for machines without the launch packages."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from mca_perception.ros.descriptions import LAUNCHES, LaunchError
from mca_perception.ros.processes import ProcessGroup
from mca_perception.ros.transport import configure_transport
from mca_perception.ros.views import check_installed

__all__ = ["bring_up", "parse_assignments"]


def parse_assignments(words: list[str]) -> dict[str, str]:
    """Turn ``name:=value`` words into a dictionary.

    Raises:
        LaunchError: a word has another form.
    """
    pairs = [word.partition(":=") for word in words]
    for (name, separator, _), word in zip(pairs, words, strict=True):
        if not separator or not name:
            raise LaunchError(f"launch argument {word!r} must look like name:=value")
    return {name: value for name, _, value in pairs}


def bring_up(launch: str, arguments: Mapping[str, str]) -> int:
    """Run a launch description until it ends, fails or is interrupted.

    Args:
        launch: its name.
        arguments: values by name.

    Returns:
        0 after a normal end, Ctrl-C, or when nobody reads the output any more (``mca up | head``); else the exit code
        of the process that failed, 1 for a signal.

    Raises:
        LaunchError: the description or an argument does not exist, or a program to look with is not installed.
    """
    if launch not in LAUNCHES:
        raise LaunchError(f"launch description {launch!r} does not exist; there are: {', '.join(LAUNCHES)}")
    nodes = LAUNCHES[launch][1](arguments)
    check_installed(nodes)
    configure_transport()
    lock = threading.Lock()

    def forward(name: str, line: str) -> None:
        with lock:
            sys.stdout.write(f"[{name}] {line}\n")
            sys.stdout.flush()

    group = ProcessGroup(on_line=forward)
    ended = None
    with _first_signal_interrupts() as ignore_signals, suppress(KeyboardInterrupt, BrokenPipeError), group:
        group.start(nodes)
        ended = group.wait()
        ignore_signals()
    if losses := group.describe_losses():
        sys.stderr.write(f"warning: {losses}\n")
    _flush_output()
    if ended is None or ended.process.returncode == 0:
        return 0
    sys.stderr.write(f"error: {ended.describe_failure()}\n")
    return max(1, ended.process.returncode)


def _flush_output() -> None:
    """Write what is still held back; if that cannot be done, drop it, or the end of the process would fail at it."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextmanager
def _first_signal_interrupts() -> Iterator[Callable[[], None]]:
    """Raise ``KeyboardInterrupt`` at the first SIGINT or SIGTERM, and ignore further ones; yields what ignores all.

    One that comes while nodes are ended would leave them behind; their end has its own time limits.
    """
    # SIGINT too: a shell starts background jobs with it ignored, and Python then installs no handler of its own.
    handled = (signal.SIGINT, signal.SIGTERM)

    def ignore() -> None:
        for number in handled:
            signal.signal(number, signal.SIG_IGN)

    def interrupt(*_: object) -> None:
        ignore()
        raise KeyboardInterrupt

    previous = [signal.signal(number, interrupt) for number in handled]
    try:
        yield ignore
    finally:
        for number, handler in zip(handled, previous, strict=True):
            signal.signal(number, handler)
