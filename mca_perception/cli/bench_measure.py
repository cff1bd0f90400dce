"""How `mca bench` measures: candidates take turns in one process, beside the machine's own peaks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["figures", "interleave", "machine_peaks", "resident_megabytes"]

_GEMM_SIDE = 1536
_COPY_BYTES = 1 << 28
_REPEATS = 5


def interleave(
    calls: Mapping[str, Callable[[], object]], runs: int, *, images: int = 1, gflop: float | None = None
) -> dict[str, dict[str, float]]:
    """Run candidates in turn after one warm-up each.

    Args:
        calls: by candidate.
        runs: turns of every candidate.
        images: that one call works on.
        gflop: arithmetic of one call, for ``gflop_per_s``.

    Returns:
        Figures by candidate, see :func:`figures`, with ``warm_up_ms`` and ``warm_up_megabytes``: what the first call
        took, in time and in memory that stayed resident; and ``processor_ms``: median processor time over all
        threads, which a busy machine disturbs less.
    """
    timings: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    found: dict[str, dict[str, float]] = {}
    for name, call in calls.items():
        before, started = resident_megabytes(), time.perf_counter()
        call()
        found[name] = {
            "warm_up_ms": round(1000 * (time.perf_counter() - started), 2),
            "warm_up_megabytes": round(resident_megabytes() - before, 1),
        }
    for _ in range(runs):
        for name, call in calls.items():
            started, worked = time.perf_counter(), time.process_time()
            call()
            timings[name].append(1000 * (time.perf_counter() - started))
            processor[name].append(1000 * (time.process_time() - worked))
    for name, values in processor.items():
        found[name]["processor_ms"] = round(float(np.median(values)), 3)
    return {name: {**figures(timings[name], images, gflop), **found[name]} for name in calls}


def figures(milliseconds: list[float], images: int = 1, gflop: float | None = None) -> dict[str, float]:
    """Median, 95th and 99th percentile, fastest, images per second and, given the arithmetic, GFLOP/s."""
    p50, p95, p99 = (float(np.percentile(milliseconds, q)) for q in (50, 95, 99))
    result = {
        "p50_ms": round(p50, 3),
        "p95_ms": round(p95, 3),
        "p99_ms": round(p99, 3),
        "fastest_ms": round(min(milliseconds), 3),
        "images_per_second": round(1000 * images / p50, 2),
    }
    if gflop is not None:
        result["gflop_per_s"] = round(1000 * gflop / p50, 1)
    return result


def machine_peaks(threads: int) -> dict[str, float]:
    """What this machine reaches at best: float32 matrix products (ONNX Runtime) and copies (NumPy).

    Args:
        threads: of the product; the copy uses one.

    Returns:
        ``gemm_gflop_per_s`` and ``copy_gb_per_s`` (bytes read and written), the best of five.
    """
    product = _product(threads)
    array = np.ones(_COPY_BYTES // 4, np.float32)
    target = np.empty_like(array)
    gemm = min(_seconds(product) for _ in range(_REPEATS))
    copy = min(_seconds(lambda: np.copyto(target, array)) for _ in range(_REPEATS))
    return {
        "gemm_gflop_per_s": round(2e-9 * _GEMM_SIDE**3 / gemm, 1),
        "copy_gb_per_s": round(2e-9 * _COPY_BYTES / copy, 1),
    }


def resident_megabytes() -> float:
    """Memory of this process that is in use now (Linux), else 0."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _product(threads: int) -> Callable[[], Any]:
    import onnx
    import onnxruntime as ort

    text = f"""
    <ir_version: 9, opset_import: ["" : 17]>
    product (float[{_GEMM_SIDE}, {_GEMM_SIDE}] a, float[{_GEMM_SIDE}, {_GEMM_SIDE}] b)
      => (float[{_GEMM_SIDE}, {_GEMM_SIDE}] c) {{ c = MatMul (a, b) }}
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = onnx.parser.parse_model(text).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    square = np.ones((_GEMM_SIDE, _GEMM_SIDE), np.float32)
    return lambda: session.run(None, {"a": square, "b": square})


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
