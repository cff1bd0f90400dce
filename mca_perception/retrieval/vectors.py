"""Vectors of length 1 as rows of a flat file: float32, float16, or int8 with one scale per row."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import RetrievalError

__all__ = ["DTYPES", "VectorFile", "check_vectors", "record_dtype"]

DTYPES = ("float32", "float16", "int8")
LARGEST_CODE = 127
# Rows that are turned into float32 at once: few enough to stay in the processor's cache.
_CHUNK_BYTES = 1 << 21
# A float16 whose bits are moved to where a float32 has its sign, exponent and fraction is smaller by this factor.
_HALF_FACTOR, _HALF_SHIFT, _HALF_BITS = np.float32(2.0**112), 13, np.int32(0x8FFFE000 - (1 << 32))


def record_dtype(dtype: str, dimension: int) -> np.dtype[Any]:
    """Layout of a row; an int8 row is followed by its scale, float32."""
    if dtype == "int8":
        return np.dtype([("codes", np.int8, (dimension,)), ("scale", "<f4")])
    return np.dtype(("<f4" if dtype == "float32" else "<f2", (dimension,)))


class VectorFile:
    """A file of rows, memory-mapped for reading. The number of rows that count is the store's to know.

    Args:
        path: the file.
        dimension: width ``D``.
        dtype: one of `DTYPES`.
    """

    def __init__(self, path: Path, dimension: int, dtype: str) -> None:
        self.path, self.dimension, self.dtype = path, dimension, dtype
        self.row_bytes = record_dtype(dtype, dimension).itemsize
        self._rows: NDArray[Any] = np.zeros(0, record_dtype(dtype, dimension))

    @property
    def rows(self) -> NDArray[Any]:
        """All rows as they are stored: ``[N, D]``, or ``[N]`` records with ``codes`` and ``scale`` for int8."""
        return self._rows

    def map(self, count: int) -> None:
        """See the first ``count`` rows. Arrays given out earlier stay valid.

        Raises:
            RetrievalError: the file is shorter.
        """
        if count == len(self._rows):
            return
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < count * self.row_bytes:
            raise RetrievalError(
                f"{self.path} has {size // self.row_bytes:,} rows, {count:,} are recorded: it was truncated; restore "
                "it, or index the images again into another store"
            )
        layout = record_dtype(self.dtype, self.dimension)
        if layout.subdtype is None:
            self._rows = np.memmap(self.path, layout, "r", shape=(count,)) if count else np.zeros(0, layout)
        else:
            base = layout.subdtype[0]
            shape = (count, self.dimension)
            self._rows = np.memmap(self.path, base, "r", shape=shape) if count else np.zeros(shape, base)

    def read(self, rows: Sequence[int] | NDArray[np.integer[Any]] | slice) -> NDArray[np.float32]:
        """Rows as float32 ``[R, D]``."""
        chosen = self._rows[rows if isinstance(rows, slice) else np.asarray(rows, np.intp)]
        if self.dtype == "int8":
            return np.asarray(chosen["codes"].astype(np.float32) * chosen["scale"][:, None], np.float32)
        return np.asarray(chosen, np.float32)

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Dot products float32 ``[Q, R]`` of queries ``[Q, D]`` with some rows; for a slice without a copy of them."""
        total = len(range(*rows.indices(len(self._rows)))) if isinstance(rows, slice) else len(rows)
        found = np.empty((len(queries), total), np.float32)
        if self.dtype == "float32" and isinstance(rows, slice):
            return np.matmul(queries, self._rows[rows].T, out=found)
        chosen = self._rows[rows] if isinstance(rows, slice) else None
        scaled = queries * _HALF_FACTOR if self.dtype == "float16" else queries
        step = max(1, _CHUNK_BYTES // (4 * self.dimension))
        for start in range(0, total, step):
            part = slice(start, start + step)
            chunk = self._rows[rows[part]] if chosen is None else chosen[part]  # type: ignore[index]
            if self.dtype == "int8":
                found[:, part] = queries @ chunk["codes"].astype(np.float32).T
                found[:, part] *= chunk["scale"]
            elif self.dtype == "float16":
                found[:, part] = scaled @ _moved(chunk).T
            else:
                found[:, part] = queries @ chunk.T
        return found

    def append(self, vectors: NDArray[np.float32], at: int) -> None:
        """Write rows from number ``at`` on, and wait until they are on the disk.

        Raises:
            RetrievalError: the disk is full, or the file cannot be written. What was there before is kept.
        """
        try:
            with self.path.open("r+b" if self.path.exists() else "w+b") as stream:
                stream.truncate(at * self.row_bytes)
                stream.seek(at * self.row_bytes)
                stream.write(self.encode(vectors).tobytes())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise RetrievalError(
                f"{self.path} cannot be written ({error.strerror}); make room and repeat the call, what was there is "
                "kept"
            ) from error

    def cut(self, count: int) -> None:
        """Remove what lies behind the first ``count`` rows: the leftovers of a crash."""
        if self.path.is_file() and self.path.stat().st_size > count * self.row_bytes:
            with self.path.open("r+b") as stream:
                stream.truncate(count * self.row_bytes)

    def encode(self, vectors: NDArray[np.float32]) -> NDArray[Any]:
        """Rows ``[R, D]`` float32 as they are stored."""
        if self.dtype != "int8":
            return vectors.astype("<f4" if self.dtype == "float32" else "<f2")
        records = np.empty(len(vectors), record_dtype(self.dtype, self.dimension))
        scale = np.abs(vectors).max(axis=1) / LARGEST_CODE
        records["scale"] = np.where(scale > 0, scale, 1)
        records["codes"] = np.rint(vectors / records["scale"][:, None])
        return records

    def close(self) -> None:
        """Forget the mapping."""
        self._rows = self._rows[:0].copy()


def _moved(halves: NDArray[np.float16]) -> NDArray[np.float32]:
    """Float16 as float32, all smaller by `_HALF_FACTOR`: twice as fast as NumPy's conversion, and as exact."""
    bits = np.ascontiguousarray(halves).view(np.int16).astype(np.int32)
    bits <<= _HALF_SHIFT
    bits &= _HALF_BITS
    return bits.view(np.float32)


def check_vectors(vectors: NDArray[np.floating[Any]], count: int, dimension: int) -> NDArray[np.float32]:
    """The vectors with length 1.

    Raises:
        RetrievalError: the shape is not ``[count, dimension]``, or a vector is not finite or zero.
    """
    rows = np.asarray(vectors, np.float32)
    if rows.shape != (count, dimension):
        raise RetrievalError(f"vectors have shape {rows.shape}, not {(count, dimension)}; check the model")
    if not np.isfinite(rows).all():
        raise RetrievalError("a vector holds NaN or infinity; check the image and the model")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise RetrievalError("a vector is zero and has no direction; check the image and the model")
    return np.asarray(rows / lengths, np.float32)
