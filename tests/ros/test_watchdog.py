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

from tests.support.processes import kill_with_children

pytestmark = pytest.mark.xdist_group("test_watchdog")


SCRIPT = """
import ctypes, sys, time
from mca_perception.ros.watchdog import may_take_long, watching
hang = ctypes.PyDLL(None).usleep  # PyDLL keeps the interpreter's lock
with watching(0.5) as watchdog:
    for _ in range(4):
        time.sleep(0.25)
        watchdog.feed()
    print("fed", flush=True)
    with may_take_long():
        watchdog.feed()  # as the executor does while another thread loads a model
        hang(800_000)
    print("took long", flush=True)
    {block}
time.sleep(0.7)
print("not watched any more", flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timers of Linux")
@pytest.mark.parametrize(
    ("block", "code", "said"),
    [
        ("hang(900_000)", -signal.SIGKILL, ["fed", "took long"]),
        ("pass", 0, ["fed", "took long", "not watched any more"]),
    ],
    ids=["hangs", "goes on"],
)
def test_a_process_ends_when_it_is_not_fed(block: str, code: int, said: list[str]) -> None:
    script = SCRIPT.format(block=block)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()) == (code, said), done.stderr


@pytest.fixture
def running(request: Any, colour_bundle: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "mca_perception.cli.main", "up", "armbench", f"tasks:={request.param}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"model:={colour_bundle}", "heartbeat_s:=2.0"], stdout=log, stderr=subprocess.STDOUT
        )
        yield process
        kill_with_children(process)


def child(process: subprocess.Popen[bytes]) -> int:
    """Process id of the only node."""
    (found,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(found)


@pytest.mark.parametrize(
    ("running", "number"),
    [("together", signal.SIGKILL), ("together", signal.SIGSTOP), ("container", signal.SIGSTOP)],
    indirect=["running"],
)
def test_a_node_that_is_killed_or_hangs_comes_back(
    running: subprocess.Popen[bytes], client: Any, tmp_path: Path, number: int
) -> None:
    client.perception(lambda facts: facts["state"] == "active", "the node", 60)
    before = child(running)
    os.kill(before, number)
    client.wait(lambda: b"is started again" in (tmp_path / "log").read_bytes(), 30, "the respawn")
    client.perception(lambda facts: facts["state"] == "active", "the node again", 60)
    assert child(running) != before
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 0
