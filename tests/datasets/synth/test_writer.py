"""Worker processes of the synthesiser."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads processes from /proc")
PATIENCE_S = 60


def workers_of(pid: int) -> list[int]:
    """Running descendants of a process that render."""
    children = [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [n for n in children if "spawn_main" in Path(f"/proc/{n}/cmdline").read_text()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end, "not within the time limit"
        time.sleep(0.05)


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mca_perception.cli.main",
        "synth",
        "totes",
        "--out",
        str(tmp_path / "t"),
    ]
    command += ["--count", "5000", "--workers", "2"]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: any((tmp_path / "t").rglob("*.jpg")))
        workers = workers_of(parent.pid)
        assert len(workers) == 2
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not any(map(is_running, workers)))
