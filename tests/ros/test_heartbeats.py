"""Respawn: nodes that crash or hang are started again, those that refuse are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")

from mca_perception.ros.heartbeats import Heartbeats
from tests.support.processes import kill_with_children

pytestmark = pytest.mark.xdist_group("test_heartbeats")


def test_silence_is_reported_once_and_only_after_a_first_sign() -> None:
    now, silent = [0.0], []
    beats = Heartbeats({"/a": 5.0}, silent.append, lambda: now[0])
    now[0] = 100.0
    beats.check()
    assert silent == []  # still starting
    assert beats.hear("/a")
    assert not beats.hear("/a")
    assert not beats.hear("/other")
    now[0] = 105.0
    beats.check()
    assert silent == []
    now[0] = 105.1
    beats.check()
    beats.check()
    assert silent == ["/a"]
    beats.hear("/a")
    now[0] = 111.0
    beats.check()
    assert silent == ["/a", "/a"]


@pytest.fixture
def running(colour_bundle: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mca_perception.cli.main", "up", "armbench"),
                *(f"model:={colour_bundle}", "heartbeat_s:=4.0"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        yield process
        kill_with_children(process)


def child(process: subprocess.Popen[bytes]) -> int:
    """Process id of the perception node."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (found,) = (
        int(pid) for pid in children if b"perception_node" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_node_that_is_killed_or_hangs_comes_back(
    running: subprocess.Popen[bytes], client: Any, tmp_path: Path, number: int
) -> None:
    client.perception(lambda facts: facts["state"] == "active", "the node", 60)
    client.wait(lambda: b"is heard" in (tmp_path / "log").read_bytes(), 60, "the manager to hear the node")
    before = child(running)
    os.kill(before, number)
    client.wait(lambda: b"is started again" in (tmp_path / "log").read_bytes(), 30, "the respawn")
    client.perception(lambda facts: facts["state"] == "active", "the node again", 60)
    assert child(running) != before
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 0
