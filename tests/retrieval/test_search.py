from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from mca_perception.errors import RetrievalError
from mca_perception.retrieval import search as search_module
from mca_perception.retrieval.search import (
    FAISS_KINDS,
    ExactSearch,
    best_rows,
    open_searcher,
    score_rows,
)
from mca_perception.retrieval.store import ImageRecord
from tests.support.retrieval import ClusterEncoder, cluster_store, cluster_vectors, grow

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
needs_qdrant = pytest.mark.skipif(
    importlib.util.find_spec("qdrant_client") is None, reason="qdrant-client is not installed"
)
QUERIES = cluster_vectors(6, seed=9)


def brute_force(vectors, query, k: int):
    scores = np.round(vectors.astype(np.float64) @ query, 6)
    return sorted(range(len(vectors)), key=lambda row: (-scores[row], row))[:k]


def test_best_rows_orders_ties_by_row() -> None:
    scores = np.array([0.5, 0.9, 0.5, 0.9, 0.5, 0.1], np.float32)
    rows = np.array([10, 11, 12, 13, 14, 15])
    assert best_rows(scores, rows, 4).rows.tolist() == [11, 13, 10, 12]
    assert best_rows(scores, rows, 99).rows.tolist() == [11, 13, 10, 12, 14, 15]


@pytest.mark.parametrize("block_rows", [1, 7, 64, 10_000])
def test_exact_search_is_brute_force_whatever_the_blocks(
    tmp_path: Path, monkeypatch, block_rows: int
) -> None:
    monkeypatch.setattr(search_module, "BLOCK_ROWS", block_rows)
    with cluster_store(tmp_path / "s", 300) as store:
        vectors = store.vectors(slice(0, 300))
        store.append([ImageRecord(f"copy{i}") for i in range(300)], vectors)  # every score twice
        doubled = np.concatenate([vectors, vectors])
        for query, hits in zip(QUERIES, ExactSearch(store).search(QUERIES, 25), strict=True):
            assert hits.rows.tolist() == brute_force(doubled, query, 25)
        some = np.arange(3, 600, 4)
        (hits,) = score_rows(store, QUERIES[:1], 10, rows=some)
        assert hits.rows.tolist() == some[brute_force(doubled[some], QUERIES[0], 10)].tolist()


@pytest.mark.parametrize(("dtype", "share"), [("float16", 0.9), ("int8", 0.8)])
def test_rounded_vectors_find_nearly_the_same(tmp_path: Path, dtype: str, share: float) -> None:
    vectors = cluster_vectors(2000)
    with cluster_store(tmp_path / "s", 2000, dtype=dtype) as store:
        for query, hits in zip(QUERIES, ExactSearch(store).search(QUERIES, 50), strict=True):
            assert len(set(hits.rows.tolist()) & set(brute_force(vectors, query, 50))) >= share * 50


@needs_faiss
@pytest.mark.parametrize("kind", FAISS_KINDS)
def test_faiss_agrees_and_takes_in_new_rows(tmp_path: Path, kind: str) -> None:
    with cluster_store(tmp_path / "s", 1000) as store:
        searcher = open_searcher(store, kind)
        wanted = {"faiss-flat": 1.0, "faiss-float16": 0.9}.get(kind, 0.8)
        for _ in range(2):
            exact = ExactSearch(store).search(QUERIES, 20)
            found = searcher.search(QUERIES, 20)
            same = [len(set(a.rows) & set(b.rows)) / 20 for a, b in zip(exact, found, strict=True)]
            assert np.mean(same) >= wanted
            grow(store, 500, seed=3)
            searcher.refresh()


@needs_faiss
def test_a_graph_is_kept_and_a_damaged_one_built_again(tmp_path: Path) -> None:
    with cluster_store(tmp_path / "s", 200) as store:
        first = open_searcher(store, "faiss-hnsw").search(QUERIES, 5)
        kept = tmp_path / "s" / "hnsw.faiss"
        stamp = kept.stat().st_mtime_ns
        again = open_searcher(store, "faiss-hnsw").search(QUERIES, 5)
        assert kept.stat().st_mtime_ns == stamp
        kept.write_bytes(kept.read_bytes()[:100])
        rebuilt = open_searcher(store, "faiss-hnsw").search(QUERIES, 5)
        for a, b, c in zip(first, again, rebuilt, strict=True):
            assert a.rows.tolist() == b.rows.tolist() == c.rows.tolist()


@needs_qdrant
@pytest.mark.filterwarnings("ignore")
def test_the_embedded_database_agrees_and_stays(tmp_path: Path) -> None:
    with cluster_store(tmp_path / "s", 120) as store:
        for _ in range(2):
            searcher = open_searcher(store, "qdrant")
            exact = ExactSearch(store).search(QUERIES, 7)
            for a, b in zip(exact, searcher.search(QUERIES, 7), strict=True):
                assert a.rows.tolist() == b.rows.tolist()
            searcher.close()
            grow(store, 30, seed=4)


def test_unknown_back_ends_are_refused(tmp_path: Path) -> None:
    with (
        cluster_store(tmp_path / "s", 3) as store,
        pytest.raises(RetrievalError, match="choose one of exact"),
    ):
        open_searcher(store, "annoy")
    assert ClusterEncoder().dimension == store.file.dimension
