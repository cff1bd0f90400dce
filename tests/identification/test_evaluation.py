from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mca_perception.identification.evaluation import Query, ReferenceSet, rank_queries, recall_figures
from mca_perception.identification.gallery import Gallery


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make_set(seed: int, queries: int = 60, views: int = 1) -> tuple[list[Query], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    centres = {f"P{i}": unit(rng, 8) for i in range(30)}
    references = {
        p: np.stack([c + 0.5 * unit(rng, 8) for _ in range(int(rng.integers(1, 7)))])
        for p, c in centres.items()
    }
    references = {p: r / np.linalg.norm(r, axis=1, keepdims=True) for p, r in references.items()}
    for product in ("P0", "P1"):
        del references[product]  # some products have no references
    found = []
    for i in range(queries):
        manifest = tuple(f"P{j}" for j in rng.choice(30, int(rng.integers(1, 15)), replace=False))
        truth = manifest[0] if rng.random() < 0.9 else "P29"
        embedding = centres[truth] + 0.7 * unit(rng, views, 8)
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
        found.append(Query(str(i), truth, manifest, embedding.astype(np.float32)))
    return found, references


def brute_force(query: Query, references: dict[str, np.ndarray], within: bool) -> tuple[list[str], list[str]]:
    """Products and, one entry per image, products again, best first."""
    allowed = [p for p in references if not within or p in query.manifest]
    images = [(float(v @ row), p) for p in allowed for row in references[p] for v in query.embeddings]
    best: dict[tuple[str, int], float] = {}
    for p in allowed:
        for j, row in enumerate(references[p]):
            best[p, j] = max(float(v @ row) for v in query.embeddings)
    ordered = [p for (p, _), _ in sorted(best.items(), key=lambda e: -e[1])]
    assert len(images) >= len(ordered)
    return list(dict.fromkeys(ordered)), ordered


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("within", [True, False])
def test_ranks_equal_brute_force(seed, views, within) -> None:
    queries, references = make_set(seed, views=views)
    ranked = rank_queries(queries, ReferenceSet.from_products(references), within_manifest=within)
    for query, result in zip(queries, ranked, strict=True):
        products, images = brute_force(query, references, within)
        assert result.candidates == len(products)
        if query.product_id in products:
            assert result.rank == products.index(query.product_id) + 1
            first = images.index(query.product_id)
            assert result.image_rank == first + 1
        else:
            assert result.rank is result.image_rank is None
        assert (result.best[0] if result.best else None) == (products[0] if products else None)

    figures = recall_figures(ranked)
    for k in (1, 2, 3):
        hits = [q.product_id in brute_force(q, references, within)[0][:k] for q in queries]
        by_image = [q.product_id in brute_force(q, references, within)[1][:k] for q in queries]
        assert figures[f"recall@{k}"] == pytest.approx(np.mean(hits))
        assert figures[f"recall_by_image@{k}"] == pytest.approx(np.mean(by_image))
    assert figures["queries"] == len(queries)
    low, high = figures["recall@1_interval95"]
    assert low <= figures["recall@1"] <= high


def test_ranking_is_that_of_the_gallery(tmp_path: Path) -> None:
    queries, references = make_set(7)
    ranked = rank_queries(queries, ReferenceSet.from_products(references))
    with Gallery.open(tmp_path / "g") as gallery:
        gallery.add_many(references)
        for query, result in zip(queries, ranked, strict=True):
            found = [p for p, _ in gallery.search(query.embeddings, 30, query.manifest)[0]]
            place = found.index(query.product_id) + 1 if query.product_id in found else None
            assert result.rank == place


def query(truth: str, manifest: tuple[str, ...], *row: float) -> Query:
    return Query("q", truth, manifest, np.array([row], np.float32))


def test_queries_that_cannot_be_ranked_count_as_wrong() -> None:
    references = ReferenceSet.from_products({"a": np.eye(1, 2, dtype=np.float32)})
    ranked = rank_queries(
        [
            query("a", ("a", "b"), 1, 0),
            query("b", ("a", "b"), 1, 0),  # truth has no references
            query("c", ("c",), 1, 0),  # nothing in the manifest has
            query("c", (), 1, 0),
        ],
        references,
    )
    figures = recall_figures(ranked)
    assert figures["recall@1"] == figures["recall@3"] == 0.25
    assert figures["chance_recall@1"] == 0.25
    assert figures["not_ranked"] == {
        "manifest without references": 2,
        "product without references or not in the manifest": 1,
    }
    assert [r.margin for r in ranked] == [-1.0, np.inf, np.inf, np.inf]


def test_many_references_of_one_product_do_not_crowd_out_others() -> None:
    references = ReferenceSet.from_products(
        {"near": np.tile(np.array([[1, 0]], np.float32), (6, 1)), "truth": np.array([[0.8, 0.6]], np.float32)}
    )
    (result,) = rank_queries([query("truth", ("near", "truth"), 1, 0)], references)
    assert (result.rank, result.image_rank) == (2, 7)


def test_ties_count_against_the_truth() -> None:
    same = np.array([[1, 0]], np.float32)
    references = ReferenceSet.from_products({"first": same, "second": same, "third": same})
    manifest = ("first", "second", "third")
    ranks = [r.rank for r in rank_queries([query(p, manifest, 1, 0) for p in manifest], references)]
    assert ranks == [1, 3, 3]


def test_figures_by_manifest_size_add_up() -> None:
    queries, references = make_set(1, queries=200)
    figures = recall_figures(rank_queries(queries, ReferenceSet.from_products(references)))
    groups = figures["by_manifest_size"]
    counted = sum(g["queries"] for g in groups) + figures["not_ranked"]["manifest without references"]
    assert counted == 200
    hits = sum(g["queries"] * g["recall@1"] for g in groups)
    assert hits == pytest.approx(200 * figures["recall@1"])


def test_chance_is_what_random_embeddings_reach() -> None:
    rng = np.random.default_rng(0)
    references = ReferenceSet.from_products({f"P{i}": unit(rng, 1, 64) for i in range(40)})
    queries = [
        Query(str(i), m[0], tuple(m), unit(rng, 1, 64))
        for i, m in enumerate([f"P{j}" for j in rng.choice(40, 5, replace=False)] for _ in range(2000))
    ]
    figures = recall_figures(rank_queries(queries, references), seed=3)
    assert figures["chance_recall@1"] == pytest.approx(0.2)
    low, high = figures["recall@1_interval95"]
    assert low - 0.02 < 0.2 < high + 0.02
    assert high - low == pytest.approx(2 * 1.96 * (0.2 * 0.8 / 2000) ** 0.5, rel=0.2)
    assert recall_figures(rank_queries(queries, references), seed=3) == figures


def test_no_queries_and_no_references() -> None:
    assert recall_figures([])["recall@1"] is None
    (result,) = rank_queries([query("a", ("a",), 1, 0)], ReferenceSet.from_products({}))
    assert (result.rank, result.candidates) == (None, 0)


def tied_set(seed: int) -> tuple[list[Query], dict[str, np.ndarray]]:
    """Small integer vectors: cosines tie all the time; products without references, queries without some views."""
    rng = np.random.default_rng(seed)
    references = {
        f"P{i}": rng.integers(-1, 2, (int(rng.integers(1, 5)), 3)).astype(np.float32) for i in range(12)
    }
    del references["P3"], references["P7"]
    queries = []
    for i in range(80):
        manifest = tuple(f"P{j}" for j in rng.choice(12, int(rng.integers(0, 9)), replace=False))
        truth = str(rng.choice([*manifest, "P7", "unheard of"]))
        views = rng.integers(-1, 2, (int(rng.integers(1, 4)), 3)).astype(np.float32)
        queries.append(Query(str(i), truth, manifest, views))
    return queries, references


def by_loops(query: Query, references: dict[str, np.ndarray], within: bool) -> dict[str, object]:
    """What a query scores: ties count against the truth, unless it is the product that is returned first."""
    allowed = [p for p in (dict.fromkeys(query.manifest) if within else references) if p in references]
    images = {
        p: [max(float(view @ row) for view in query.embeddings) for row in references[p]] for p in allowed
    }
    best = {p: max(rows) for p, rows in images.items()}
    scores = sorted(best.values(), reverse=True)
    found: dict[str, object] = {"candidates": len(allowed), "similarities": scores[:20]}
    truth = query.product_id
    others = sorted((score for p, score in best.items() if p != truth), reverse=True)
    found |= {"rank": None, "image_rank": None, "precision": 0.0, "others": others[:20]}
    if truth in best:
        wins = next(p for p in allowed if best[p] == scores[0]) == truth
        found["rank"] = 1 if wins else 1 + sum(score >= best[truth] for score in others)
        precisions, foreign = [], [s for p in allowed if p != truth for s in images[p]]
        for place, own in enumerate(sorted(images[truth], reverse=True), start=1):
            ahead = 0 if wins and own == best[truth] else sum(score >= own for score in foreign)
            precisions.append(place / (place + ahead))
            found["image_rank"] = found["image_rank"] or 1 + ahead
        found["precision"] = sum(precisions) / len(precisions)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("within", [True, False])
def test_figures_equal_loops_with_ties_and_gaps(seed, within) -> None:
    queries, references = tied_set(seed)
    ranked = rank_queries(queries, ReferenceSet.from_products(references), within_manifest=within)
    expected = [by_loops(query, references, within) for query in queries]
    for result, truth in zip(ranked, expected, strict=True):
        assert (result.candidates, result.rank, result.image_rank) == (
            truth["candidates"],
            truth["rank"],
            truth["image_rank"],
        )
        assert result.image_precision == pytest.approx(truth["precision"])
        assert result.similarities.tolist() == truth["similarities"]
        assert result.others.tolist() == truth["others"]
    figures = recall_figures(ranked)
    ranks = [truth["rank"] for truth in expected]
    for k in (1, 2, 3):
        assert figures[f"recall@{k}"] == pytest.approx(np.mean([r is not None and r <= k for r in ranks]))
    assert figures["map"] == pytest.approx(np.mean([0.0 if r is None else 1 / r for r in ranks]))
    assert figures["map_by_image"] == pytest.approx(np.mean([truth["precision"] for truth in expected]))
    assert figures["queries"] == 80
