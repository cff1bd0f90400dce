"""How `mca bench` measures: candidates take turns in one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from mca_perception.cli.bench_power import PowerMeter

__all__ = ["figures", "interleave", "interleave_images", "nothing", "resident_megabytes"]

Image = TypeVar("Image")


def nothing() -> None:
    """What happens between turns where nothing else is asked for."""


def interleave(
    calls: Mapping[str, Callable[[], object]],
    runs: int,
    *,
    images: int = 1,
    gflop: float | None = None,
    between: Callable[[], None] = nothing,
    meter: PowerMeter | None = None,
) -> dict[str, dict[str, float]]:
    """Run candidates in turn after one warm-up each.

    Args:
        calls: by candidate.
        runs: turns of every candidate.
        images: that one call works on.
        gflop: arithmetic of one call, for ``gflop_per_s``.
        between: called before every round.
        meter: adds what it finds for a candidate.

    Returns:
        Figures by candidate, see :func:`figures`, with ``warm_up_ms`` and ``warm_up_megabytes``: what the first call
        took, in time and in memory that stayed resident; and ``processor_ms``: median processor time over all
        threads, which a busy machine disturbs less.
    """
    meter = meter or PowerMeter()
    timings: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    first = {name: _first(call) for name, call in calls.items()}
    for _ in range(runs):
        between()
        for name, call in calls.items():
            started, worked = time.perf_counter(), time.process_time()
            with meter.during(name):
                call()
            timings[name].append(1000 * (time.perf_counter() - started))
            processor[name].append(1000 * (time.process_time() - worked))
    found = {name: {**figures(timings[name], images, gflop), **first[name]} for name in calls}
    return _with_costs(found, processor, meter)


def interleave_images(
    calls: Mapping[str, Callable[[Image], object]],
    images: Sequence[Image],
    runs: int,
    *,
    at_once: int = 1,
    between: Callable[[], None] = nothing,
    meter: PowerMeter | None = None,
) -> dict[str, dict[str, float]]:
    """Run candidates in turn on several images, one after the other or several at the same time.

    Args:
        calls: take one image, on any thread.
        images: each of the threads works on all of them in every turn, starting with another one.
        runs: turns of every candidate.
        at_once: threads.
        between: called before every round.
        meter: adds what it finds for a candidate.

    Returns:
        Figures by candidate as those of :func:`interleave`: times of single images, and images per second by the time
        in which a turn's images were done.
    """
    meter = meter or PowerMeter()
    each: dict[str, list[float]] = {name: [] for name in calls}
    turns: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    count = at_once * len(images)
    with ThreadPoolExecutor(at_once) as threads:

        def turn(call: Callable[[Image], object]) -> list[float]:
            parts = threads.map(partial(_one_by_one, call, images), range(at_once))
            return [value for part in parts for value in part]

        first = {name: _first(partial(turn, call)) for name, call in calls.items()}
        for _ in range(runs):
            between()
            for name, call in calls.items():
                started, worked = time.perf_counter(), time.process_time()
                with meter.during(name):
                    each[name] += turn(call)
                turns[name].append(time.perf_counter() - started)
                processor[name].append(1000 * (time.process_time() - worked) / count)
    found = {
        name: {
            **figures(each[name]),
            **first[name],
            "images_per_second": round(count / float(np.median(turns[name])), 2),
        }
        for name in calls
    }
    return _with_costs(found, processor, meter)


def _with_costs(
    found: dict[str, dict[str, float]], processor: dict[str, list[float]], meter: PowerMeter
) -> dict[str, dict[str, float]]:
    """Figures with the processor time of a call or an image, and with power where it is told."""
    return {
        name: {
            **values,
            "processor_ms": round(float(np.median(processor[name])), 3),
            **meter.take(name, values["images_per_second"]),
        }
        for name, values in found.items()
    }


def _one_by_one(call: Callable[[Image], object], images: Sequence[Image], start: int) -> list[float]:
    """Milliseconds of every image, beginning with the one at ``start``."""
    timings = []
    for number in range(len(images)):
        image = images[(start + number) % len(images)]
        started = time.perf_counter()
        call(image)
        timings.append(1000 * (time.perf_counter() - started))
    return timings


def _first(call: Callable[[], object]) -> dict[str, float]:
    before, started = resident_megabytes(), time.perf_counter()
    call()
    return {
        "warm_up_ms": round(1000 * (time.perf_counter() - started), 2),
        "warm_up_megabytes": round(resident_megabytes() - before, 1),
    }


def figures(milliseconds: list[float], images: int = 1, gflop: float | None = None) -> dict[str, float]:
    """Median, percentiles and images per second of some times.

    ``fastest_ms`` is the least, and ``spread`` how far the median lies above it: much on a busy machine. Given the
    arithmetic, GFLOP/s by the median and by the fastest.
    """
    p50, p95, p99 = (float(np.percentile(milliseconds, q)) for q in (50, 95, 99))
    fastest = min(milliseconds)
    result = {
        "p50_ms": round(p50, 3),
        "p95_ms": round(p95, 3),
        "p99_ms": round(p99, 3),
        "fastest_ms": round(fastest, 3),
        "spread": round(p50 / fastest - 1, 3),
        "images_per_second": round(1000 * images / p50, 2),
    }
    if gflop is not None:
        result["gflop_per_s"] = round(1000 * gflop / p50, 1)
        result["fastest_gflop_per_s"] = round(1000 * gflop / fastest, 1)
    return result


def resident_megabytes() -> float:
    """Memory of this process that is in use now (Linux), else 0."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
