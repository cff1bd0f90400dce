"""Electrical power while `mca bench` measures, from the tool that the platform brings along."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["PowerMeter"]

INTERVAL_MS = 100

# "VDD_IN 4990mW/5012mW": now and on average; older versions of tegrastats leave the unit out.
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?= |$)")
_WHOLE_BOARD = ("VDD_IN", "POM_5V_IN")


def _watts_of_gpu(line: str) -> float | None:
    """A line of nvidia-smi, such as ``61.45``; None for ``[N/A]``."""
    try:
        return float(line)
    except ValueError:
        return None


def _watts_of_jetson(line: str) -> float | None:
    """A line of tegrastats: the rail of the whole board where there is one, else all rails together."""
    rails = {name: int(milliwatts) / 1000 for name, milliwatts in _RAIL.findall(line) if name != "RAM"}
    for name in _WHOLE_BOARD:
        if name in rails:
            return rails[name]
    return sum(rails.values()) if rails else None


_TOOLS: dict[str, tuple[tuple[str, ...], Callable[[str], float | None]]] = {
    "tegrastats": (("--interval", str(INTERVAL_MS)), _watts_of_jetson),
    "nvidia-smi": (
        ("--id=0", "--query-gpu=power.draw", "--format=csv,noheader,nounits", f"--loop-ms={INTERVAL_MS}"),
        _watts_of_gpu,
    ),
}


class PowerMeter:
    """Mean power of candidates that take turns: of a Jetson by tegrastats, of the first GPU by nvidia-smi.

    A context: the tool runs as long. Where there is neither, nothing is measured and ``tool`` is None.
    """

    def __init__(self) -> None:
        self.tool = next((name for name in _TOOLS if shutil.which(name)), None)
        self._process: subprocess.Popen[str] | None = None
        self._samples: list[tuple[float, float]] = []
        self._turns: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def __enter__(self) -> PowerMeter:
        if self.tool is not None:
            arguments, read = _TOOLS[self.tool]
            self._process = subprocess.Popen(
                [self.tool, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            threading.Thread(target=self._listen, args=(self._process, read), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    @contextmanager
    def during(self, candidate: str) -> Iterator[None]:
        """What happens within is the candidate's."""
        started = time.perf_counter()
        yield
        self._turns[candidate].append((started, time.perf_counter()))

    def take(self, candidate: str, images_per_second: float) -> dict[str, float]:
        """``watts`` and ``joules_per_image`` of a candidate since the last call; nothing where no sample fell."""
        turns = self._turns.pop(candidate, [])
        found = [watts for at, watts in list(self._samples) if any(a <= at <= b for a, b in turns)]
        if not found:
            return {}
        watts = sum(found) / len(found)
        return {"watts": round(watts, 2), "joules_per_image": round(watts / images_per_second, 4)}

    def _listen(self, process: subprocess.Popen[str], read: Callable[[str], float | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            watts = read(line.strip())
            if watts is not None:
                self._samples.append((time.perf_counter(), watts))
