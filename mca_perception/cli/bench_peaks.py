"""What a machine reaches at best in matrix products and copies, sampled while a benchmark runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mca_perception.cli.bench_peers import why_not

__all__ = ["MachinePeaks"]

_SHAPES = ((1536, 1536, 1536), (1576, 768, 3072))
"""Rows, depth and columns: a square product, and the largest of base at 224 px in a batch of 8."""

_COPY_BYTES = 1 << 28


class MachinePeaks:
    """The machine's own peaks: float32 products of the libraries that are installed, and copies of NumPy.

    The fastest product of any library and any sample counts: a candidate that is timed between samples cannot find the
    machine in a better state than the peak did, but for noise. How far the medians lie below tells how busy it was.
    """

    def __init__(self, threads: int) -> None:
        """Prepare the products.

        Args:
            threads: of a product; a copy uses one.
        """
        makers = {"onnxruntime": _onnx_product, "torch": _torch_product}
        self._products = {
            (f"{library} {rows} x {depth} x {columns}", 2e-9 * rows * depth * columns): make(
                rows, depth, columns, threads
            )
            for library, make in makers.items()
            if why_not(library) is None
            for rows, depth, columns in _SHAPES
        }
        self._array = np.ones(_COPY_BYTES // 4, np.float32)
        self._target = np.empty_like(self._array)
        self._gflop_per_s: dict[str, list[float]] = {name: [] for name, _ in self._products}
        self._gb_per_s: list[float] = []
        self.sample()  # the first of each also reserves memory

    def sample(self) -> None:
        """Time each product and the copy once more."""
        for (name, gflop), product in self._products.items():
            self._gflop_per_s[name].append(gflop / _seconds(product))
        copied = _seconds(lambda: np.copyto(self._target, self._array))
        self._gb_per_s.append(2e-9 * _COPY_BYTES / copied)

    def figures(self) -> dict[str, Any]:
        """The peaks so far.

        Returns:
            ``gemm_gflop_per_s``: the best product; ``gemm_product``: its library, rows x depth x columns;
            ``gemm_products``: best and median of each; ``copy_gb_per_s`` (bytes read and written): the best copy;
            ``samples``: of each.
        """
        best = {name: max(values) for name, values in self._gflop_per_s.items()}
        fastest = max(best, key=lambda name: best[name])
        return {
            "gemm_gflop_per_s": round(best[fastest], 1),
            "gemm_product": fastest,
            "gemm_products": {
                name: {"best": round(best[name], 1), "median": round(float(np.median(values)), 1)}
                for name, values in self._gflop_per_s.items()
            },
            "copy_gb_per_s": round(max(self._gb_per_s), 1),
            "samples": len(self._gb_per_s),
        }


def _onnx_product(rows: int, depth: int, columns: int, threads: int) -> Callable[[], Any]:
    """A product with a constant, as layers are: ONNX Runtime packs it beforehand."""
    import onnx
    import onnxruntime as ort

    text = f"""
    <ir_version: 9, opset_import: ["" : 17]>
    product (float[{rows}, {depth}] a) => (float[{rows}, {columns}] c) {{ c = MatMul (a, b) }}
    """
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((depth, columns), np.float32), "b"))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    left = np.ones((rows, depth), np.float32)
    return lambda: session.run(None, {"a": left})


def _torch_product(rows: int, depth: int, columns: int, threads: int) -> Callable[[], Any]:
    import torch

    left, right = torch.ones(rows, depth), torch.ones(columns, depth)

    def product() -> Any:
        torch.set_num_threads(threads)
        return torch.nn.functional.linear(left, right)

    return product


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
