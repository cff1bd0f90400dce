"""Calls of a ROS service with a number of them under way all the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

ANSWER_TIMEOUT_S = 60.0


def keep_in_flight(
    client: Any, executor: Any, requests: Iterator[Any], in_flight: int
) -> tuple[list[float], list[Any], float]:
    """Send requests; latencies in ms, answers, seconds in all. Ends early when an answer stays away."""
    latencies: list[float] = []
    answers: list[Any] = []
    waiting: dict[Any, float] = {}
    started = last = time.perf_counter()
    exhausted = False
    while not exhausted or waiting:
        while not exhausted and len(waiting) < in_flight:
            if (request := next(requests, None)) is None:
                exhausted = True
            else:
                sent = time.perf_counter()
                waiting[client.call_async(request)] = sent
        executor.spin_once(timeout_sec=0.1)
        now = time.perf_counter()
        for future in [future for future in waiting if future.done()]:
            latencies.append((now - waiting.pop(future)) * 1000)
            answers.append(future.result())
            last = now
        if now - last > ANSWER_TIMEOUT_S:
            break
    return latencies, answers, time.perf_counter() - started
