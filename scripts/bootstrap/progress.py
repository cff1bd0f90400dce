"""Runs the commands of the set-up: says what is going on, keeps a log, and explains a failure."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TERMINAL_INTERVAL_S = 0.5
LOG_INTERVAL_S = 15.0
SHOWN_LINES = 25

# What a log says when something known went wrong -> what to do about it. The first match counts.
REMEDIES = (
    (r"No space left on device", "Free some disk space and run the same command again."),
    (
        r"name resolution|NewConnectionError|ConnectTimeout|ReadTimeout|Network is unreachable|ProxyError"
        r"|Connection (refused|reset|aborted)|CERTIFICATE_VERIFY_FAILED",
        "The package index could not be reached, and the first set-up needs it. Check the network, or set "
        "PIP_INDEX_URL, PIP_PROXY or PIP_CERT to what this network uses.",
    ),
    (
        r"No matching distribution found|Could not find a version",
        "The package index has no build for this Python and platform. Try another Python: "
        "make demo PYTHON=python3.12",
    ),
    (r"ensurepip|No module named venv", "Install Python's venv module: sudo apt install python3-venv"),
    (r"Python\.h", "Install Python's headers: sudo apt install python3-dev"),
    (
        r"CMAKE_CXX_COMPILER|CMAKE_C_COMPILER|c\+\+: not found|g\+\+: not found",
        "Install a C++ compiler: sudo apt install g++",
    ),
    (r"fatal error: Killed|out of memory", "The compiler ran out of memory: close other programs."),
)


class SetupError(Exception):
    """The set-up cannot go on; the message says why and what to do."""


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def last_line(log: Path) -> str:
    """Return the last line of a log that has something on it, or an empty string."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def remedy_for(output: str) -> str:
    """Find what to do about a failed command from what it printed."""
    for pattern, remedy in REMEDIES:
        if re.search(pattern, output):
            return remedy
    return "Mend what the lines above name and run the same command again; finished steps are kept."


def _wait(process: subprocess.Popen[bytes], label: str, log: Path, started: float) -> int:
    """Wait for a command and show that it is alive: on one line of a terminal, else now and then a line."""
    terminal = sys.stdout.isatty()
    while True:
        try:
            return process.wait(timeout=TERMINAL_INTERVAL_S if terminal else LOG_INTERVAL_S)
        except subprocess.TimeoutExpired:
            status = f"  {label}: {time.monotonic() - started:.0f} s  {last_line(log)}"
            if terminal:
                print(f"\r\033[K{status[:100]}", end="", flush=True)
            else:
                say(status[:160])


def run(
    label: str,
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    cwd: Path | None = None,
) -> None:
    """Run one command of the set-up.

    Args:
        label: what the command does, for people.
        command: argument list.
        log: file for everything the command prints.
        environment: the command's whole environment.
        cwd: folder to run in.

    Raises:
        SetupError: the command failed; the message ends in the remedy.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=cwd)
        try:
            status = _wait(process, label, log, started)
        except BaseException:
            process.kill()
            process.wait()
            raise
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    if status != 0:
        text = log.read_text(errors="replace")
        tail = "\n".join("    " + line for line in text.splitlines()[-SHOWN_LINES:])
        raise SetupError(f"{label} failed:\n{tail}\n  Full log: {log}\n  {remedy_for(text)}")
    say(f"  {label}: done in {time.monotonic() - started:.0f} s")
