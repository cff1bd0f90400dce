"""Identification figures: Recall@k and average precision, within a container's manifest and among all products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.identification.confidence import CANDIDATES

__all__ = ["MANIFEST_BINS", "Query", "Ranked", "ReferenceSet", "rank_queries", "recall_figures"]

KS = (1, 2, 3)
MANIFEST_BINS = ((1, 5), (6, 10), (11, 20), (21, 50), (51, None))
"""Products with references in a manifest, inclusive."""

BOOTSTRAP_SAMPLES = 2000
_SIMILARITIES_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class Query:
    """One pick to identify.

    Attributes:
        id: Pick-ID.
        product_id: the truth.
        manifest: products in the container.
        embeddings: float32 ``[V, E]``, one per view, L2-normalised.
    """

    id: str
    product_id: str
    manifest: tuple[str, ...]
    embeddings: NDArray[np.float32]


@dataclass(frozen=True)
class ReferenceSet:
    """Reference embeddings of products; those of ``products[i]`` are rows ``starts[i]`` to ``starts[i + 1]``.

    Attributes:
        embeddings: float32 ``[R, E]``, L2-normalised.
        starts: int64 ``[P + 1]``.
        products: the ``P`` product ids.
    """

    embeddings: NDArray[np.float32]
    starts: NDArray[np.int64]
    products: tuple[str, ...]

    @classmethod
    def from_products(cls, references: Mapping[str, NDArray[np.float32]]) -> ReferenceSet:
        """Stack the embeddings ``[R, E]`` of products, at least one each."""
        starts = np.cumsum([0, *(len(rows) for rows in references.values())])
        rows = np.concatenate(list(references.values())) if references else np.zeros((0, 0), np.float32)
        return cls(rows, starts, tuple(references))

    def of(self, positions: Sequence[int]) -> ReferenceSet:
        """Return a set of some products only, by position."""
        return ReferenceSet.from_products(
            {self.products[i]: self.embeddings[self.starts[i] : self.starts[i + 1]] for i in positions}
        )


@dataclass(frozen=True)
class Ranked:
    """Where the truth of one query came out.

    Attributes:
        query: the query.
        candidates: products that were ranked; 0 when no product of the manifest has references.
        rank: place of the truth among unique products, from 1; ``None`` when it was not ranked at all.
        image_rank: place of the truth's first reference image among all images, from 1.
        best: the product ranked first, and its similarity.
        truth_similarity: similarity of the truth.
        image_precision: average precision of the truth's reference images among all images; 0 when it was not ranked.
        similarities: float32, of the best 20 products, descending.
        others: float32, of the best 20 products without the truth, descending: what the query would look like if its
            product were unknown.
    """

    query: Query
    candidates: int
    rank: int | None
    image_rank: int | None
    best: tuple[str, float] | None
    truth_similarity: float | None
    image_precision: float
    similarities: NDArray[np.float32]
    others: NDArray[np.float32]

    @property
    def margin(self) -> float:
        """How far a wrong product lies ahead of the truth; negative when the truth is first."""
        if self.best is None or self.truth_similarity is None:
            return float("inf")
        return self.best[1] - self.truth_similarity if self.rank != 1 else -self.best[1]


def rank_queries(
    queries: Sequence[Query], references: ReferenceSet, *, within_manifest: bool = True
) -> list[Ranked]:
    """Rank products for every query by cosine similarity.

    The similarity of a product is the largest between any view of the query and any of its reference images.

    Args:
        queries: the picks.
        references: all reference embeddings.
        within_manifest: rank only the products in each query's manifest; otherwise all.
    """
    position = {product: i for i, product in enumerate(references.products)}
    ranked = []
    for query in queries:
        candidates = references
        if within_manifest:
            candidates = references.of([position[p] for p in dict.fromkeys(query.manifest) if p in position])
        ranked.append(_rank(query, candidates))
    return ranked


def recall_figures(ranked: Sequence[Ranked], *, seed: int = 0) -> dict[str, Any]:
    """Recall@k with its denominator, a 95 % interval and chance level, in all and by manifest size.

    Queries whose truth was not ranked, for instance because no product of the manifest has references, count
    as wrong.

    Args:
        ranked: from :func:`rank_queries`.
        seed: of the bootstrap.

    Returns:
        ``queries``, ``recall@1`` to ``recall@3`` (unique products), ``recall_by_image@1`` to ``@3``
        (reference images, as some publications count), ``map`` and ``map_by_image``, ``recall@1_interval95``,
        ``chance_recall@1``, ``mean_candidates``, ``not_ranked`` and ``by_manifest_size``. Each query has one product
        that is right, so ``map`` is the mean of 1 / rank.
    """
    figures = _recalls(ranked, seed)
    figures["mean_candidates"] = float(np.mean([r.candidates for r in ranked])) if ranked else None
    figures["not_ranked"] = {
        "manifest without references": sum(r.candidates == 0 for r in ranked),
        "product without references or not in the manifest": sum(
            r.candidates > 0 and r.rank is None for r in ranked
        ),
    }
    figures["by_manifest_size"] = [
        {
            "products": f"{low}-{high}" if high else f"{low}+",
            "mean_candidates": float(np.mean([r.candidates for r in group])),
            **_recalls(group, seed),
        }
        for low, high in MANIFEST_BINS
        if (group := [r for r in ranked if low <= r.candidates and (high is None or r.candidates <= high)])
    ]
    return figures


def _rank(query: Query, candidates: ReferenceSet) -> Ranked:
    products = candidates.products
    nothing = np.zeros(0, np.float32)
    if not products:
        return Ranked(query, 0, None, None, None, None, 0.0, nothing, nothing)
    similarity = _best_view(query.embeddings, candidates.embeddings)
    by_product = np.maximum.reduceat(similarity, candidates.starts[:-1])
    winner = int(by_product.argmax())
    best = (products[winner], float(by_product[winner]))
    highest = _highest(by_product)
    if query.product_id not in products:
        return Ranked(query, len(products), None, None, best, None, 0.0, highest, highest)
    truth = products.index(query.product_id)
    own = by_product[truth]
    # A tie counts against the truth, unless it is the product that is returned first.
    ahead = 0 if truth == winner else int((by_product >= own).sum()) - 1
    first, last = candidates.starts[truth : truth + 2]
    images_ahead = _images_ahead(
        similarity[first:last],
        np.concatenate([similarity[:first], similarity[last:]]),
        wins_ties=truth == winner,
    )
    found = np.arange(1, len(images_ahead) + 1)
    return Ranked(
        query,
        len(products),
        1 + ahead,
        1 + int(images_ahead[0]),
        best,
        float(own),
        float((found / (found + images_ahead)).mean()),
        highest,
        _highest(np.delete(by_product, truth)),
    )


def _highest(similarities: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest :data:`CANDIDATES` values, descending."""
    if len(similarities) > CANDIDATES:
        similarities = np.partition(similarities, -CANDIDATES)[-CANDIDATES:]
    return np.sort(similarities)[::-1]


def _images_ahead(
    own: NDArray[np.float32], others: NDArray[np.float32], *, wins_ties: bool
) -> NDArray[np.int64]:
    """How many images of other products are ranked before each image of the truth, best image first."""
    own = np.sort(own)[::-1]
    if not wins_ties:
        return (others >= own[:, None]).sum(axis=1)
    # Nothing is better than the best image then, and what equals it comes after it.
    return np.where(own == own[0], 0, (others >= own[:, None]).sum(axis=1))


def _best_view(queries: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest similarity of any view with each reference, in parts of bounded size."""
    similarity = np.empty(len(references), dtype=np.float32)
    step = max(1, _SIMILARITIES_AT_ONCE // len(queries))
    for start in range(0, len(references), step):
        similarity[start : start + step] = (references[start : start + step] @ queries.T).max(axis=1)
    return similarity


def _recalls(ranked: Sequence[Ranked], seed: int) -> dict[str, Any]:
    count = len(ranked)
    figures: dict[str, Any] = {"queries": count}
    for name, ranks in (
        ("recall", [r.rank for r in ranked]),
        ("recall_by_image", [r.image_rank for r in ranked]),
    ):
        for k in KS:
            hits = sum(rank is not None and rank <= k for rank in ranks)
            figures[f"{name}@{k}"] = hits / count if count else None
    reciprocal = [1 / r.rank if r.rank is not None else 0.0 for r in ranked]
    figures["map"] = float(np.mean(reciprocal)) if count else None
    figures["map_by_image"] = float(np.mean([r.image_precision for r in ranked])) if count else None
    chance = [1 / r.candidates if r.rank is not None else 0.0 for r in ranked]
    figures["chance_recall@1"] = float(np.mean(chance)) if count else None
    figures["recall@1_interval95"] = _bootstrap(np.array([r.rank == 1 for r in ranked]), seed)
    return figures


def _bootstrap(hits: NDArray[np.bool_], seed: int) -> list[float] | None:
    """95 % interval of the mean over queries, drawn with replacement."""
    if len(hits) == 0:
        return None
    # The number of hits in a resample of n queries is binomial, so no resample needs to be drawn in full.
    means = np.random.default_rng(seed).binomial(len(hits), hits.mean(), BOOTSTRAP_SAMPLES) / len(hits)
    return [float(v) for v in np.percentile(means, [2.5, 97.5])]
