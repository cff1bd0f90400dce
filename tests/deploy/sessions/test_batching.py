"""Calls that wait together run together; each gets its own rows, its own error, and its turn."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.manifest import TensorSpec
from mca_perception.deploy.session import OnnxSession
from mca_perception.deploy.sessions.base import Arrays, GraphSession
from mca_perception.deploy.sessions.batching import BatchingSession
from mca_perception.deploy.sessions.turns import Turns
from tests.support.bundles import write_colour_bundle


class Recorder(GraphSession):
    """Doubles its input; refuses batches above ``most`` rows and numbers below zero."""

    backend = "recorder"
    device = "test"

    def __init__(self, first: str | int = "N", most: int = 1000) -> None:
        self.inputs = (TensorSpec(name="x", dtype="float32", shape=("N", "columns")),)
        self.outputs = (TensorSpec(name="y", dtype="float32", shape=(first, "columns")),)
        self.sizes: list[int] = []
        self._most = most

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        rows = inputs["x"]
        if len(rows) > self._most:
            raise MemoryError(f"{len(rows)} rows")
        if (rows < 0).any():
            raise ValueError("negative")
        self.sizes.append(len(rows))
        return {"y": rows * 2}


def run_together(session: BatchingSession, device: Turns, calls: list[NDArray[Any]]) -> list[Any]:
    """Outcomes of calls that come, in this order, while the device is busy."""
    with ThreadPoolExecutor(len(calls)) as threads:
        futures = []
        with device:
            for number, rows in enumerate(calls):
                futures.append(threads.submit(session.run, {"x": rows}))
                while len(device._waiting) <= number:  # asked for the device, and now in the queue
                    pass
        return [future.exception() or future.result()["y"] for future in futures]


def rows_of(*sizes: int, columns: int = 2) -> list[NDArray[np.float32]]:
    return [np.full((size, columns), number, np.float32) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("calls", "max_rows", "batches"),
    [
        (rows_of(1, 1, 1), 8, [3]),
        (rows_of(1, 1, 1), 2, [2, 1]),
        (rows_of(3, 2, 4), 8, [5, 4]),
        (rows_of(9, 1), 8, [9, 1]),
        ([*rows_of(1), *rows_of(1, columns=3), *rows_of(1)], 8, [2, 1]),
        (rows_of(1, 1), 1, [1, 1]),
    ],
)
def test_what_waits_together_runs_together(calls: list[Any], max_rows: int, batches: list[int]) -> None:
    recorder, device = Recorder(), Turns()
    found = run_together(BatchingSession(recorder, device, max_rows=max_rows), device, calls)
    assert recorder.sizes == batches
    for rows, doubled in zip(calls, found, strict=True):
        np.testing.assert_array_equal(doubled, rows * 2)


def test_a_call_that_finds_the_device_free_runs_at_once() -> None:
    recorder = Recorder()
    session = BatchingSession(recorder, Turns(), max_rows=8)
    for rows in rows_of(1, 2, 3):
        session.run({"x": rows})
    assert recorder.sizes == [1, 2, 3]


def test_graphs_with_a_fixed_first_axis_run_call_by_call() -> None:
    recorder, device = Recorder(first=1), Turns()
    run_together(BatchingSession(recorder, device, max_rows=8), device, rows_of(1, 1))
    assert recorder.sizes == [1, 1]


def test_one_callers_error_is_its_own() -> None:
    recorder, device = Recorder(), Turns()
    good, bad, also_good = rows_of(1, 1, 1)
    bad -= 5
    found = run_together(BatchingSession(recorder, device, max_rows=8), device, [good, bad, also_good])
    assert isinstance(found[1], ValueError)
    np.testing.assert_array_equal(found[0], good * 2)
    np.testing.assert_array_equal(found[2], also_good * 2)


def test_a_batch_too_large_for_the_memory_is_run_call_by_call() -> None:
    recorder, device = Recorder(most=1), Turns()
    found = run_together(BatchingSession(recorder, device, max_rows=8), device, rows_of(1, 1, 1))
    assert recorder.sizes == [1, 1, 1]
    assert not any(isinstance(outcome, Exception) for outcome in found)


def test_graphs_take_turns_on_one_device() -> None:
    device = Turns()
    at_once: list[int] = []
    running = 0
    lock = threading.Lock()

    class Busy(Recorder):
        def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
            nonlocal running
            with lock:
                running += 1
                at_once.append(running)
            result = super().run(inputs)
            with lock:
                running -= 1
            return result

    sessions = [BatchingSession(Busy(), device, max_rows=4) for _ in range(2)]
    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(sessions[n % 2].run, {"x": rows_of(1)[0]}) for n in range(200)]:
            future.result()
    assert max(at_once) == 1


def test_rows_of_a_real_graph_do_not_depend_on_their_company(tmp_path: Path) -> None:
    bundle: ModelBundle = write_colour_bundle(tmp_path / "colours")
    plain = OnnxSession(bundle.path_of("backbone"), intra_op_threads=1)
    device = Turns()
    session = BatchingSession(plain, device, max_rows=8)
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(n, 3, 32, 48)).astype(np.float32) for n in (1, 3, 2)]
    with ThreadPoolExecutor(3) as threads:
        with device:
            futures = [threads.submit(session.run, {"images": image}) for image in images]
            while len(device._waiting) < 3:
                pass
        found = [future.result()["features"] for future in futures]
    for image, features in zip(images, found, strict=True):
        np.testing.assert_allclose(features, plain.run({"images": image})["features"], atol=1e-6)
