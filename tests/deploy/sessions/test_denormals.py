from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest

from mca_perception.deploy.session import OnnxSession
from mca_perception.deploy.sessions.denormals import SUPPORTED, denormals_as_zero

SMALL = np.full(64, 1e-38, np.float32)
DOUBLING = """
<ir_version: 9, opset_import: ["" : 17]>
doubling (float[N] x) => (float[N] y) { y = Add (x, x) }
"""

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="not Linux on x86-64")


def tenth(values: np.ndarray) -> float:
    return float((values * np.float32(0.1))[0])


def test_small_numbers_are_zero_inside_and_kept_outside() -> None:
    with denormals_as_zero():
        assert tenth(SMALL) == 0
        with denormals_as_zero():
            assert tenth(SMALL) == 0
        assert tenth(SMALL) == 0
    assert tenth(SMALL) > 0


def test_arithmetic_is_restored_after_an_error() -> None:
    with pytest.raises(ValueError, match="stop"), denormals_as_zero():
        raise ValueError("stop")
    assert tenth(SMALL) > 0


def test_other_threads_are_left_alone() -> None:
    inside, done = threading.Event(), threading.Event()
    found: list[float] = []

    def other() -> None:
        inside.wait(10)
        found.append(tenth(SMALL))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with denormals_as_zero():
        inside.set()
        assert done.wait(10)
    thread.join()
    assert found[0] > 0


def test_a_graph_runs_without_small_numbers_in_any_thread_and_leaves_the_caller_alone(tmp_path) -> None:
    path = tmp_path / "doubling.onnx"
    onnx.save(onnx.parser.parse_model(DOUBLING), path)
    session = OnnxSession(path, providers=["CPUExecutionProvider"], intra_op_threads=1)
    assert tenth(SMALL) > 0
    tiny = {"x": np.full(64, 1e-39, np.float32)}
    found = [session.run(tiny)["y"]]
    thread = threading.Thread(target=lambda: found.append(session.run(tiny)["y"]))
    thread.start()
    thread.join()
    assert [values.max() for values in found] == [0, 0]
    assert tenth(SMALL) > 0
