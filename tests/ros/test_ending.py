"""A process whose native code hangs while it holds the interpreter's lock ends all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mca_perception.ros import ending, kernel_timers

HANG = "ctypes.PyDLL(None).sleep(100)"  # PyDLL keeps the interpreter's lock


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timers of Linux")
@pytest.mark.parametrize(
    ("block", "code"),
    [(HANG, 7), ("pass", 3)],
    ids=["hangs", "ends in time"],
)
def test_the_end_is_limited(block: str, code: int) -> None:
    script = (
        "import ctypes, sys, time\n"
        "from mca_perception.ros.ending import ends_within\n"
        "print('said before')\n"
        f"with ends_within(1, 7):\n    {block}\n"
        "time.sleep(1.5)\n"  # the timer is gone
        "sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "said before\n"), done.stderr


def test_without_such_timers_nothing_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_timers.ctypes, "CDLL", lambda *_, **__: object())
    with ending.ends_within(1, 7):
        pass
