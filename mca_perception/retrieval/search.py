"""Search back ends behind one interface: ours over the memory-mapped store, faiss in memory, Qdrant on any host.

All compare by the dot product of vectors of length 1 and put equal scores in the order of rows.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.store import RetrievalStore

__all__ = [
    "BACK_ENDS",
    "ExactSearch",
    "FaissSearch",
    "Hits",
    "QdrantSearch",
    "Searcher",
    "best_rows",
    "open_searcher",
    "score_rows",
]

BLOCK_ROWS = 65_536
"""Rows whose scores are ranked at once."""
# Scores that differ by less are equal: a product of the same two vectors may round differently in another block.
_SCORE_DECIMALS = 6
HNSW_LINKS, HNSW_BUILD_EFFORT, HNSW_SEARCH_EFFORT = 32, 80, 128
FAISS_KINDS = ("faiss-flat", "faiss-float16", "faiss-int8", "faiss-hnsw")
BACK_ENDS = ("exact", *FAISS_KINDS, "qdrant")
_UPLOAD_ROWS = 1024


class Hits(NamedTuple):
    """Best rows of one query.

    Attributes:
        rows: int64 ``[K]``, best first, equal scores by row.
        scores: float32 ``[K]`` cosines.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class Searcher(Protocol):
    """Finds the rows of a store that are most similar to queries.

    Attributes:
        name: one of `BACK_ENDS`.
        is_exact: whether it never misses a row.
    """

    name: str
    is_exact: bool

    def search(self, queries: NDArray[np.float32], k: int) -> list[Hits]:
        """The best ``k`` rows, or all where there are fewer, of each query ``[Q, D]`` of length 1."""
        ...

    def refresh(self) -> None:
        """Take in rows that the store has gained."""
        ...


def best_rows(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Hits:
    """The ``k`` highest scores, equal ones by row; ``rows`` are in ascending order."""
    rounded = np.round(scores, _SCORE_DECIMALS)
    chosen = np.arange(len(rounded))
    if len(rounded) > k:
        smallest = np.partition(rounded, len(rounded) - k)[len(rounded) - k]
        above = np.flatnonzero(rounded > smallest)
        ties = np.flatnonzero(rounded == smallest)[: k - len(above)]
        chosen = np.concatenate([above, ties])
    order = chosen[np.lexsort((rows[chosen], -rounded[chosen]))]
    return Hits(rows[order].astype(np.int64), rounded[order])


def score_rows(
    store: RetrievalStore,
    queries: NDArray[np.float32],
    k: int,
    *,
    rows: NDArray[np.int64] | None = None,
    first: int = 0,
) -> list[Hits]:
    """Exact search among some rows.

    Args:
        store: where they are.
        queries: ``[Q, D]`` of length 1.
        k: rows to return; fewer where there are fewer.
        rows: ascending row numbers to look among; all by default.
        first: without ``rows``, the first row to look at.
    """
    total = store.count - first if rows is None else len(rows)
    empty = Hits(np.zeros(0, np.int64), np.zeros(0, np.float32))
    best = [empty] * len(queries)
    for start in range(0, total, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, total)
        if rows is None:
            numbers = np.arange(first + start, first + stop, dtype=np.int64)
            scores = store.file.scores(queries, slice(first + start, first + stop))
        else:
            numbers = rows[start:stop]
            scores = store.file.scores(queries, numbers)
        for i, row in enumerate(scores):
            found = best_rows(row, numbers, k)
            # Earlier rows come first, so that all row numbers are ascending where scores are equal.
            merged = np.concatenate([best[i].rows, found.rows])
            order = np.argsort(merged, kind="stable")
            both = np.concatenate([best[i].scores, found.scores])
            best[i] = best_rows(both[order], merged[order], k)
    return best


class ExactSearch:
    """Compares with every row, in blocks over the memory-mapped file; nothing is built and nothing is copied.

    Attributes:
        name: ``exact``.
        is_exact: True.
    """

    name = "exact"
    is_exact = True

    def __init__(self, store: RetrievalStore) -> None:
        self._store = store

    def search(self, queries: NDArray[np.float32], k: int) -> list[Hits]:
        """See :class:`Searcher`."""
        return score_rows(self._store, queries, k)

    def refresh(self) -> None:
        """Nothing to do: the store is read as it is."""


class FaissSearch:
    """An index of faiss in memory: ``faiss-flat``, ``faiss-float16``, ``faiss-int8`` or the graph ``faiss-hnsw``.

    A graph takes long to build and is kept beside the store, named after what it is of; the others are read in again.

    Args:
        store: what to search.
        kind: one of `FAISS_KINDS`.
        links: neighbours per row of a graph.
        build_effort: candidates looked at for each row while a graph is built (``efConstruction``).
        search_effort: likewise for a query (``efSearch``).

    Raises:
        RetrievalError: faiss is not installed, or a kept graph cannot be read.
    """

    def __init__(
        self,
        store: RetrievalStore,
        kind: str = "faiss-hnsw",
        *,
        links: int = HNSW_LINKS,
        build_effort: int = HNSW_BUILD_EFFORT,
        search_effort: int = HNSW_SEARCH_EFFORT,
    ) -> None:
        if kind not in FAISS_KINDS:
            raise RetrievalError(f"faiss index {kind!r} is not known; choose one of {', '.join(FAISS_KINDS)}")
        try:
            import faiss
        except ImportError as error:
            raise RetrievalError(
                "this search needs faiss: pip install -c constraints.txt -e '.[retrieval]', or choose exact"
            ) from error
        self.name, self.is_exact = kind, kind == "faiss-flat"
        self._faiss: Any = faiss
        self._store = store
        self._file = store.path / "hnsw.faiss"
        self._identity = {"store": store.meta["store"], "links": links, "build_effort": build_effort}
        self._index: Any = self._kept() if kind == "faiss-hnsw" else None
        if self._index is None:
            self._index = self._new(links, build_effort)
        if kind == "faiss-hnsw":
            self._index.hnsw.efSearch = search_effort
        self.refresh()

    def _new(self, links: int, build_effort: int) -> Any:
        width, product = self._store.file.dimension, self._faiss.METRIC_INNER_PRODUCT
        if self.name == "faiss-hnsw":
            index = self._faiss.IndexHNSWFlat(width, links, product)
            index.hnsw.efConstruction = build_effort
            return index
        if self.name == "faiss-flat":
            return self._faiss.IndexFlatIP(width)
        kinds = self._faiss.ScalarQuantizer
        quantiser = kinds.QT_fp16 if self.name == "faiss-float16" else kinds.QT_8bit
        index = self._faiss.IndexScalarQuantizer(width, quantiser, product)
        index.train(self._store.vectors(slice(0, min(self._store.count, 65_536))))
        return index

    def refresh(self) -> None:
        """Add the rows that the store has gained; keep a grown graph on the disk."""
        grown = self._index.ntotal < self._store.count
        for start in range(self._index.ntotal, self._store.count, 65_536):
            self._index.add(self._store.vectors(slice(start, min(start + 65_536, self._store.count))))
        if grown and self.name == "faiss-hnsw":
            self._keep()

    def search(self, queries: NDArray[np.float32], k: int) -> list[Hits]:
        """See :class:`Searcher`; a graph may miss rows."""
        if not self._index.ntotal:
            return [Hits(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
        scores, rows = self._index.search(np.ascontiguousarray(queries), min(k, self._index.ntotal))
        return [_in_order(*pair, k) for pair in zip(rows, scores, strict=True)]

    def _kept(self) -> Any:
        """The graph beside the store, if it is of this store and these settings."""
        facts = self._file.with_suffix(".json")
        try:
            if json.loads(facts.read_text(encoding="utf-8")) != self._identity:
                return None
            index = self._faiss.read_index(str(self._file))
        except (OSError, ValueError, RuntimeError):  # missing or damaged: built again
            return None
        fits = index.d == self._store.file.dimension and index.ntotal <= self._store.count
        return index if fits else None

    def _keep(self) -> None:
        """Write graph and facts atomically, where the folder can be written."""
        if not os.access(self._store.path, os.W_OK):
            return
        part = self._file.with_suffix(f".part{os.getpid()}")
        facts = self._file.with_suffix(".json")
        facts.unlink(missing_ok=True)
        self._faiss.write_index(self._index, str(part))
        part.replace(self._file)
        facts.write_text(json.dumps(self._identity), encoding="utf-8")


class QdrantSearch:
    """The vector database Qdrant: embedded in this process by default, or a server for more than one machine.

    Args:
        store: what to search; its vectors are uploaded, with the row number as their id.
        location: ``http://HOST:PORT`` of a server, or the folder of the embedded database; beside the store by default.

    Raises:
        RetrievalError: qdrant-client is not installed, or the server cannot be reached.
    """

    name = "qdrant"

    def __init__(self, store: RetrievalStore, location: str | None = None) -> None:
        try:
            from qdrant_client import QdrantClient, models
        except ImportError as error:
            raise RetrievalError(
                "this search needs qdrant-client: pip install -c constraints.txt -e '.[qdrant]', or choose exact"
            ) from error
        self._store, self._models = store, models
        self._collection = f"mca-{store.meta['store']}"
        remote = location is not None and "://" in location
        self.is_exact = not remote  # the embedded database compares with every row
        folder = location or str(Path(store.path) / "qdrant")
        try:
            self._client: Any = QdrantClient(url=location) if remote else QdrantClient(path=folder)
            if not self._client.collection_exists(self._collection):
                size = models.VectorParams(size=store.file.dimension, distance=models.Distance.DOT)
                self._client.create_collection(self._collection, vectors_config=size)
            self.refresh()
        except RetrievalError:
            raise
        except Exception as error:  # the client's errors have no base of their own
            raise RetrievalError(
                f"Qdrant at {location or folder} cannot be used ({error}); check it"
            ) from error

    def refresh(self) -> None:
        """Upload the rows that the store has gained."""
        start = self._client.count(self._collection, exact=True).count
        while start < self._store.count:
            stop = min(start + _UPLOAD_ROWS, self._store.count)
            batch = self._models.Batch(
                ids=list(range(start, stop)), vectors=self._store.vectors(slice(start, stop)).tolist()
            )
            self._client.upsert(self._collection, batch, wait=True)
            start = stop

    def search(self, queries: NDArray[np.float32], k: int) -> list[Hits]:
        """See :class:`Searcher`."""
        results = []
        for query in queries:
            points = self._client.query_points(self._collection, query=query.tolist(), limit=k).points
            rows = np.array([point.id for point in points], np.int64)
            results.append(_in_order(rows, np.array([point.score for point in points], np.float32), k))
        return results

    def close(self) -> None:
        """Close the database."""
        self._client.close()


def open_searcher(store: RetrievalStore, name: str, *, location: str | None = None) -> Searcher:
    """Open a back end by its name.

    Raises:
        RetrievalError: there is no such back end, or it is not installed.
    """
    if name == "exact":
        return ExactSearch(store)
    if name == "qdrant":
        return QdrantSearch(store, location)
    if name in FAISS_KINDS:
        return FaissSearch(store, name)
    raise RetrievalError(f"back end {name!r} is not known; choose one of {', '.join(BACK_ENDS)}")


def _in_order(rows: NDArray[Any], scores: NDArray[Any], k: int) -> Hits:
    """What another library found, rounded and ordered as ours."""
    found = rows >= 0
    rows, scores = rows[found].astype(np.int64), scores[found].astype(np.float32)
    order = np.argsort(rows, kind="stable")
    return best_rows(scores[order], rows[order], k)
