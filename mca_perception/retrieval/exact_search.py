"""Exact search over the memory-mapped store, and the interface that every back end has.

All compare by the dot product of vectors of length 1 and put equal scores in the order of rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mca_perception.retrieval.store import RetrievalStore

__all__ = ["ExactSearch", "Hits", "Searcher", "best_rows", "in_order", "score_rows"]

BLOCK_ROWS = 65_536
"""Rows whose scores are ranked at once."""
# Scores that differ by less are equal: a product of the same two vectors may round differently in another block.
_SCORE_DECIMALS = 6


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
        name: one of :data:`~mca_perception.retrieval.search.BACK_ENDS`.
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


def in_order(rows: NDArray[Any], scores: NDArray[Any], k: int) -> Hits:
    """What another library found, rounded and ordered as ours."""
    found = rows >= 0
    rows, scores = rows[found].astype(np.int64), scores[found].astype(np.float32)
    order = np.argsort(rows, kind="stable")
    return best_rows(scores[order], rows[order], k)
