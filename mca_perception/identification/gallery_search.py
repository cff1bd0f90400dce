"""Nearest products: exact below some thousand references, above that one-bit codes followed by exact ranking.

A code holds, for every dimension, on which side of the centre of all references an embedding lies. The Hamming distance
of two codes follows the angle between the embeddings, takes a 32nd of the memory of float32, and picks the candidates
whose cosines are then computed in float32. Searches use immutable views, so products change while they run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["ProductIndex", "Ranking", "Segment", "View", "encode", "search"]

Ranking = list[tuple[str, float]]
"""``(product id, cosine similarity)``, best first."""

EXACT_ROWS = 8192
"""A segment with at most this many references is compared with in full."""
CANDIDATES = 512
"""References of a segment, at least, whose exact similarity is computed after the comparison of codes."""
CANDIDATES_PER_RESULT = 4
_SIMILARITIES_AT_ONCE = 1 << 22
_ROWS_AT_ONCE = 8192
_NO_PRODUCT = -1


def encode(rows: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One-bit codes uint8 ``[R, ceil(D / 8)]`` of embeddings ``[R, D]`` about a centre ``[D]``."""
    return np.packbits(rows > centre, axis=1)


@dataclass(frozen=True)
class View:
    """What one search sees of a segment; nothing in it changes.

    Attributes:
        vectors: float32 ``[R, D]``, L2-normalised; may be memory-mapped.
        codes: uint8 ``[R, ceil(D / 8)]``.
        centre: float32 ``[D]`` that the codes are about.
        owners: int32 ``[R]``, position in ``products``, or -1 for a row of a removed product.
        products: product ids.
        most_references: of one product, at most.
    """

    vectors: NDArray[np.float32]
    codes: NDArray[np.uint8]
    centre: NDArray[np.float32]
    owners: NDArray[np.int32]
    products: Sequence[str]
    most_references: int


class Segment:
    """References of products in consecutive rows; rows are appended, and given up when their product goes.

    Not safe for threads: the gallery holds its lock.

    Args:
        vectors: float32 ``[R, D]``, L2-normalised, those of one product side by side.
        codes: uint8 ``[R, ceil(D / 8)]`` about ``centre``.
        centre: float32 ``[D]``.
        starts: int64 ``[P + 1]``; rows ``starts[i]`` to ``starts[i + 1]`` belong to ``products[i]``.
        products: the ``P`` product ids.
    """

    def __init__(
        self,
        vectors: NDArray[np.float32],
        codes: NDArray[np.uint8],
        centre: NDArray[np.float32],
        starts: NDArray[np.int64],
        products: list[str],
    ) -> None:
        counts = np.diff(starts)
        self.vectors, self.codes, self.centre = vectors, codes, centre
        self.used = len(vectors)
        self.count = int(counts.sum())
        self._owners = np.repeat(np.arange(len(products), dtype=np.int32), counts)
        self._shared = False
        self._names = list(products)
        self._starts = starts.tolist()[:-1]
        self._counts = counts.tolist()
        self._numbers = {product: i for i, product in enumerate(products)}
        self._most_references = int(counts.max(initial=1))

    @classmethod
    def from_products(
        cls, products: Iterable[tuple[str, NDArray[np.float32]]], references: int, width: int
    ) -> Segment:
        """Gather products with their embeddings ``[R, D]``: ``references`` in all, ``width`` numbers each."""
        vectors = np.empty((references, width), np.float32)
        names, starts = [], [0]
        for product, rows in products:
            starts.append(starts[-1] + len(rows))
            vectors[starts[-2] : starts[-1]] = rows
            names.append(product)
        centre = vectors.mean(axis=0)
        codes = np.empty((references, -(-width // 8)), np.uint8)
        for start in range(0, references, _ROWS_AT_ONCE):
            codes[start : start + _ROWS_AT_ONCE] = encode(vectors[start : start + _ROWS_AT_ONCE], centre)
        return cls(vectors, codes, centre, np.array(starts, np.int64), names)

    @classmethod
    def empty(cls, centre: NDArray[np.float32]) -> Segment:
        """A segment without rows whose codes will be about ``centre`` ``[D]``."""
        width = len(centre)
        vectors, codes = np.zeros((0, width), np.float32), np.zeros((0, -(-width // 8)), np.uint8)
        return cls(vectors, codes, centre, np.zeros(1, np.int64), [])

    def __contains__(self, product: str) -> bool:
        return product in self._numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def counts(self) -> Iterator[tuple[str, int]]:
        """References of every product."""
        return ((product, self._counts[number]) for product, number in self._numbers.items())

    def put(self, product: str, rows: NDArray[np.float32]) -> None:
        """Add or replace a product's normalised embeddings ``[R, D]``."""
        self.drop(product)
        end = self.used + len(rows)
        if end > len(self.vectors):
            self._grow(end)
        self.vectors[self.used : end] = rows
        self.codes[self.used : end] = encode(rows, self.centre)
        self._owners[self.used : end] = len(self._names)
        self._numbers[product] = len(self._names)
        self._names.append(product)
        self._starts.append(self.used)
        self._counts.append(len(rows))
        self.used = end
        self.count += len(rows)
        self._most_references = max(self._most_references, len(rows))

    def drop(self, product: str) -> None:
        """Remove a product, if it is there."""
        number = self._numbers.pop(product, None)
        if number is None:
            return
        if self._shared:
            self._owners, self._shared = self._owners.copy(), False
        start, count = self._starts[number], self._counts[number]
        self._owners[start : start + count] = _NO_PRODUCT
        self.count -= count

    def rows_of(self, product: str) -> NDArray[np.float32] | None:
        """Embeddings ``[R, D]`` of a product, if it is there."""
        number = self._numbers.get(product)
        if number is None:
            return None
        start = self._starts[number]
        return self.vectors[start : start + self._counts[number]]

    def view(self) -> View:
        """What a search may use after the lock is released."""
        # Appended rows lie behind the view; owners are copied before the next removal.
        self._shared = True
        return View(
            self.vectors[: self.used],
            self.codes[: self.used],
            self.centre,
            self._owners[: self.used],
            self._names,
            self._most_references,
        )

    def _grow(self, rows: int) -> None:
        """Move to larger arrays; views keep the old ones."""
        room = max(64, rows, 2 * len(self.vectors))
        for name in ("vectors", "codes", "_owners"):
            old = getattr(self, name)
            new = np.zeros((room, *old.shape[1:]), old.dtype)
            new[: self.used] = old[: self.used]
            setattr(self, name, new)
        self._shared = False


class ProductIndex:
    """All references: a large segment as it was when the gallery was opened, and one for changes since.

    Not safe for threads: the gallery holds its lock.

    Args:
        base: the large segment, if there is one.
    """

    def __init__(self, base: Segment | None = None) -> None:
        self._segments = [base, Segment.empty(base.centre)] if base else []

    @property
    def dimension(self) -> int | None:
        """Width of the embeddings; ``None`` while there are none."""
        return len(self._segments[-1].centre) if len(self) else None

    @property
    def count(self) -> int:
        """Number of references."""
        return sum(segment.count for segment in self._segments)

    def __len__(self) -> int:
        return sum(map(len, self._segments))

    def __contains__(self, product: str) -> bool:
        return any(product in segment for segment in self._segments)

    def counts(self) -> dict[str, int]:
        """References of every product."""
        return {product: count for segment in self._segments for product, count in segment.counts()}

    def put(self, product: str, rows: NDArray[np.float32]) -> None:
        """Add or replace a product's normalised embeddings ``[R, D]``."""
        self.drop(product)
        if self.dimension is None:
            self._segments = [Segment.empty(np.zeros(rows.shape[1], np.float32))]
        self._segments[-1].put(product, rows)

    def drop(self, product: str) -> None:
        """Remove a product, if it is there."""
        for segment in self._segments:
            segment.drop(product)

    def rows_of(self, product: str) -> NDArray[np.float32] | None:
        """Embeddings ``[R, D]`` of a product, if it is there."""
        found = (segment.rows_of(product) for segment in self._segments)
        return next((rows for rows in found if rows is not None), None)

    def views(self) -> list[View]:
        """What a search over all products uses."""
        return [segment.view() for segment in self._segments if segment.count]

    def manifest_view(self, manifest: Sequence[str]) -> View | None:
        """A view of some products only; ``None`` when the gallery has none of them."""
        known = {product: rows for product in manifest if (rows := self.rows_of(product)) is not None}
        if not known:
            return None
        counts = [len(rows) for rows in known.values()]
        vectors = np.concatenate(list(known.values()))
        owners = np.repeat(np.arange(len(known), dtype=np.int32), counts)
        no_codes = np.zeros((len(vectors), 0), np.uint8)
        return View(vectors, no_codes, self._segments[-1].centre, owners, list(known), max(counts))


def search(
    views: Sequence[View], queries: NDArray[np.float32], k: int, *, exact: bool = False
) -> list[Ranking]:
    """Rank products for each normalised query ``[N, D]`` by their most similar reference.

    Args:
        views: where to look; a product is in one of them only.
        queries: L2-normalised.
        k: products to return.
        exact: compute every similarity, also in large views.

    Returns:
        For each query up to ``k`` unique products, best first.
    """
    rankings: list[list[tuple[str, float]]] = [[] for _ in queries]
    for view in views:
        by_code = not exact and view.codes.shape[1] > 0 and len(view.vectors) > EXACT_ROWS
        found = _search_codes(view, queries, k) if by_code else _search_all(view, queries, k)
        for ranking, best in zip(rankings, found, strict=True):
            ranking += best
    return [sorted(ranking, key=lambda entry: -entry[1])[:k] for ranking in rankings]


def _search_codes(view: View, queries: NDArray[np.float32], k: int) -> Iterator[Ranking]:
    """Rank the references whose codes are nearest."""
    wanted = min(max(CANDIDATES, CANDIDATES_PER_RESULT * k * view.most_references), len(view.vectors))
    present = (view.owners != _NO_PRODUCT).astype(np.uint8)
    for query, code in zip(queries, encode(queries, view.centre), strict=True):
        _, nearest = cv2.batchDistance(
            code[None], view.codes, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=wanted, mask=present[None]
        )
        rows = np.sort(nearest[nearest >= 0]).astype(np.intp)
        yield _rank(view, rows, view.vectors[rows] @ query, k)


def _search_all(view: View, queries: NDArray[np.float32], k: int) -> Iterator[Ranking]:
    """Rank every reference."""
    rows = np.flatnonzero(view.owners != _NO_PRODUCT)
    step = max(1, _SIMILARITIES_AT_ONCE // max(len(view.vectors), 1))
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        similarities = np.empty((len(part), len(view.vectors)), np.float32)
        for first in range(0, len(view.vectors), _ROWS_AT_ONCE):
            block = view.vectors[first : first + _ROWS_AT_ONCE]
            np.matmul(part, block.T, out=similarities[:, first : first + _ROWS_AT_ONCE])
        for row in similarities[:, rows]:
            # The best k products are surely among the best k * most_references references.
            best = _smallest(-row, k * view.most_references)
            yield _rank(view, rows[best], row[best], k)


def _smallest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Positions of the smallest values, in no order."""
    if count >= len(values):
        return np.arange(len(values))
    return np.argpartition(values, count - 1)[:count]


def _rank(view: View, rows: NDArray[np.intp], similarities: NDArray[np.float32], k: int) -> Ranking:
    """Unique products of some rows by their most similar one."""
    ranking: dict[str, float] = {}
    for i in np.lexsort((rows, -similarities)):
        owner = view.owners[rows[i]]
        if owner != _NO_PRODUCT:
            ranking.setdefault(view.products[owner], float(min(similarities[i], 1.0)))
        if len(ranking) == k:
            break
    return list(ranking.items())
