"""Exact nearest-neighbour search over reference embeddings, in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["EmbeddingIndex", "Ranking"]

Ranking = list[tuple[str, float]]
"""``(product id, cosine similarity)``, best first."""

_SIMILARITIES_AT_ONCE = 1 << 25


class EmbeddingIndex:
    """References of products in one growing matrix; rows of removed products are used again.

    Not safe for threads: the gallery holds its lock.

    Attributes:
        rows: matrix rows of every product.
        dimension: width of the embeddings; ``None`` while there are none.
        count: number of references.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.rows: dict[str, NDArray[np.int64]] = {}
        self.dimension: int | None = None
        self.count = 0
        self._matrix = np.zeros((0, 0), np.float32)
        self._owner: list[str | None] = []
        self._free: list[int] = []
        self._most_references = 1

    def put(self, product: str, embeddings: NDArray[np.float32]) -> None:
        """Add or replace a product's normalised embeddings ``[R, D]``."""
        self.drop(product)
        if self.dimension is None:
            self.dimension = embeddings.shape[1]
            self._matrix = np.zeros((0, self.dimension), np.float32)
        rows = [self._free.pop() if self._free else self._append() for _ in embeddings]
        for row in rows:
            self._owner[row] = product
        self._matrix[rows] = embeddings
        self.rows[product] = np.array(rows, dtype=np.int64)
        self.count += len(rows)
        self._most_references = max(self._most_references, len(rows))

    def drop(self, product: str) -> None:
        """Remove a product, if it is there."""
        rows = self.rows.pop(product, None)
        if rows is None:
            return
        if not self.rows:
            self._reset()
            return
        for row in rows.tolist():
            self._owner[row] = None
            self._free.append(row)
        self.count -= len(rows)

    def search(self, queries: NDArray[np.float32], k: int, manifest: Sequence[str] | None) -> list[Ranking]:
        """Rank the products, or those of a manifest, for each normalised query ``[N, D]``.

        Returns:
            For each query up to ``k`` unique products by their most similar reference, best first.
        """
        rows = self._candidates(manifest)
        if len(rows) == 0:
            return [[] for _ in queries]
        everything = len(rows) == len(self._owner)
        references = self._matrix[: len(rows)] if everything else self._matrix[rows]
        step = max(1, _SIMILARITIES_AT_ONCE // len(rows))
        rankings: list[Ranking] = []
        for start in range(0, len(queries), step):
            similarities = queries[start : start + step] @ references.T
            rankings += [self._rank(row, rows, k) for row in similarities]
        return rankings

    def _candidates(self, manifest: Sequence[str] | None) -> NDArray[np.int64]:
        """Matrix rows to compare with, in ascending order when that is all of them."""
        if manifest is None and not self._free:
            return np.arange(len(self._owner))
        products = self.rows if manifest is None else [p for p in manifest if p in self.rows]
        known = [self.rows[product] for product in products]
        return np.concatenate(known) if known else np.zeros(0, np.int64)

    def _rank(self, similarities: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Ranking:
        """Rank products; the best k are surely among the best ``k * most references`` rows."""
        enough = min(k * self._most_references, len(similarities))
        best = np.argpartition(-similarities, enough - 1)[:enough]
        best = best[np.argsort(-similarities[best], kind="stable")]
        ranking: dict[str, float] = {}
        for i in best:
            product = self._owner[rows[i]]
            if product is not None and product not in ranking:
                ranking[product] = float(min(similarities[i], 1.0))
                if len(ranking) == k:
                    break
        return list(ranking.items())

    def _append(self) -> int:
        if len(self._owner) == len(self._matrix):
            larger = np.zeros((max(64, 2 * len(self._matrix)), self._matrix.shape[1]), np.float32)
            larger[: len(self._matrix)] = self._matrix
            self._matrix = larger
        self._owner.append(None)
        return len(self._owner) - 1
