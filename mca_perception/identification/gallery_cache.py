"""The search matrix beside a gallery: a file that is memory-mapped, so that opening reads next to nothing.

It is made from the gallery's file and can be deleted at any time. It names the store and the generation it was made of;
the gallery reads what has changed since. What is damaged, foreign or of another version is made again.

Layout: a JSON header in the first 4,096 bytes, vectors, codes, centre, starts, product ids as JSON. The header holds a
SHA-256 of all but the vectors; the sizes of all parts follow from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mca_perception.identification.gallery_search import Segment, encode

__all__ = ["cache_path", "read_cache", "write_cache"]

FORMAT = 1
_HEADER_BYTES = 4096
_ROWS_AT_ONCE = 4096


def cache_path(gallery: Path) -> Path:
    """Where the search matrix of a gallery file lies."""
    return gallery.with_name(f"{gallery.name}.vectors")


def read_cache(path: Path, store: str) -> tuple[Segment, int] | None:
    """Map a search matrix into memory.

    Args:
        path: the file.
        store: identity of the gallery's store.

    Returns:
        The references and the generation they are of; ``None`` when there is no usable file for this store.
    """
    try:
        with path.open("rb") as stream:
            header = json.loads(stream.read(_HEADER_BYTES))
            if not isinstance(header, dict) or (header.get("format"), header.get("store")) != (FORMAT, store):
                return None
            return _map(path, stream, header), int(header["generation"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_cache(
    path: Path, store: str, generation: int, products: Iterable[tuple[str, NDArray[np.float32]]]
) -> Segment | None:
    """Write a search matrix atomically and map it.

    Args:
        path: the file.
        store: identity of the gallery's store.
        generation: of the products.
        products: all products with their embeddings ``[R, D]``.

    Returns:
        The references; ``None`` when there are none, or the file cannot be written.
    """
    _remove_leftovers(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with part.open("w+b") as stream:
            header = _write_parts(stream, part, products)
            if header is None:
                return None
            stream.seek(0)
            whole = {**header, "store": store, "generation": generation}
            stream.write(json.dumps(whole).encode().ljust(_HEADER_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    found = read_cache(path, store)
    return None if found is None else found[0]


def _map(path: Path, stream: BinaryIO, header: dict[str, Any]) -> Segment:
    rows, width, count = int(header["rows"]), int(header["dimension"]), int(header["products"])
    names_bytes = int(header["names_bytes"])
    code_width = -(-width // 8)
    at = _HEADER_BYTES + rows * width * 4
    sizes = (rows * code_width, width * 4, (count + 1) * 8, names_bytes)
    if min(rows, width, count, names_bytes) < 1 or path.stat().st_size != at + sum(sizes):
        raise ValueError("sizes do not agree")
    stream.seek(at)
    parts = [stream.read(size) for size in sizes]
    if hashlib.sha256(b"".join(parts)).hexdigest() != header["sha256"]:
        raise ValueError("damaged")
    codes = np.frombuffer(parts[0], np.uint8).reshape(rows, code_width)
    centre, starts = np.frombuffer(parts[1], "<f4"), np.frombuffer(parts[2], "<i8")
    # A plain array over the map: np.memmap would pass its class, and its cost, to every slice.
    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    vectors = np.frombuffer(mapped, "<f4", rows * width, _HEADER_BYTES).reshape(rows, width)
    return Segment(vectors, codes, centre, starts, json.loads(parts[3]))


def _write_parts(
    stream: BinaryIO, path: Path, products: Iterable[tuple[str, NDArray[np.float32]]]
) -> dict[str, Any] | None:
    """Write everything but the header, and return that."""
    names: list[str] = []
    starts = [0]
    total: NDArray[np.float64] | None = None
    stream.seek(_HEADER_BYTES)
    for product, vectors in products:
        total = vectors.sum(axis=0, dtype=np.float64) + (0 if total is None else total)
        stream.write(vectors.astype("<f4").tobytes())
        names.append(product)
        starts.append(starts[-1] + len(vectors))
    if total is None:
        return None
    rows, width = starts[-1], len(total)
    centre = (total / rows).astype("<f4")
    stream.flush()
    vectors = np.memmap(path, "<f4", "r", _HEADER_BYTES, (rows, width))
    digest = hashlib.sha256()
    codes = (
        encode(np.asarray(vectors[start : start + _ROWS_AT_ONCE]), centre).tobytes()
        for start in range(0, rows, _ROWS_AT_ONCE)
    )
    encoded_names = json.dumps(names).encode()
    for part in (*codes, centre.tobytes(), np.array(starts, "<i8").tobytes(), encoded_names):
        digest.update(part)
        stream.write(part)
    return {
        "format": FORMAT,
        "rows": rows,
        "dimension": width,
        "products": len(names),
        "names_bytes": len(encoded_names),
        "sha256": digest.hexdigest(),
    }


def _remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed while writing has left."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        process = part.name.removeprefix(f".{path.name}.").partition(".")[0]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            part.unlink(missing_ok=True)
