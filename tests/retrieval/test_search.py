from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.main import get_command

from mca_perception.cli.retrieval import app
from mca_perception.errors import RetrievalError
from mca_perception.retrieval import exact_search, faiss_search
from mca_perception.retrieval.exact_search import ExactSearch, best_rows, score_rows
from mca_perception.retrieval.faiss_search import FAISS_KINDS
from mca_perception.retrieval.search import BACK_ENDS, open_searcher
from mca_perception.retrieval.store import ImageRecord
from tests.support.retrieval import ClusterEncoder, cluster_store, cluster_vectors, grow

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
needs_qdrant = pytest.mark.skipif(
    importlib.util.find_spec("qdrant_client") is None, reason="qdrant-client is not installed"
)
KEPT = ("faiss-hnsw", "faiss-hnsw-int8", "faiss-ivf-int8")
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
    monkeypatch.setattr(exact_search, "BLOCK_ROWS", block_rows)
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
@pytest.mark.parametrize("kind", KEPT)
def test_what_takes_long_to_build_is_kept_and_built_again_when_damaged(tmp_path: Path, kind: str) -> None:
    with cluster_store(tmp_path / "s", 200) as store:
        first = open_searcher(store, kind).search(QUERIES, 5)
        kept = tmp_path / "s" / f"{kind.removeprefix('faiss-')}.faiss"
        stamp = kept.stat().st_mtime_ns
        again = open_searcher(store, kind).search(QUERIES, 5)
        grow(store, 5, seed=7)  # too few to write the file again
        assert len(open_searcher(store, kind).search(QUERIES[:1], 205)[0].rows) == 205
        assert kept.stat().st_mtime_ns == stamp
        kept.write_bytes(kept.read_bytes()[:100])
        rebuilt = open_searcher(store, kind).search(QUERIES, 5)
        assert kept.stat().st_mtime_ns != stamp
        exact = ExactSearch(store).search(QUERIES, 5)
        for a, b, c, d in zip(first, again, rebuilt, exact, strict=True):
            assert a.rows.tolist() == b.rows.tolist()
            assert c.rows.tolist() == d.rows.tolist()


@needs_faiss
@pytest.mark.parametrize("kind", KEPT)
def test_a_build_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(faiss_search, "_ADDED_AT_ONCE", 100)
    monkeypatch.setattr(faiss_search, "KEEP_EVERY_S", 0.0)
    with cluster_store(tmp_path / "s", 350) as store:
        read, ended = store.vectors, 200

        def until_stopped(rows: object) -> object:
            if isinstance(rows, slice) and rows.start >= ended:
                raise KeyboardInterrupt
            return read(rows)

        monkeypatch.setattr(store, "vectors", until_stopped)
        with pytest.raises(KeyboardInterrupt):
            open_searcher(store, kind)
        starts = []

        def noted(rows: object) -> object:
            starts.append(rows.start if isinstance(rows, slice) else None)
            return read(rows)

        monkeypatch.setattr(store, "vectors", noted)
        searcher = open_searcher(store, kind)
        assert starts == [200, 300]
        exact = ExactSearch(store).search(QUERIES, 10)
        for a, b in zip(exact, searcher.search(QUERIES, 10), strict=True):
            assert len(set(a.rows) & set(b.rows)) >= 8


@needs_faiss
def test_lists_of_a_store_that_has_grown_much_are_made_again(tmp_path: Path) -> None:
    with cluster_store(tmp_path / "s", 100) as store:
        open_searcher(store, "faiss-ivf-int8")
        grow(store, 900, seed=5)
        searcher = open_searcher(store, "faiss-ivf-int8")
        (hits,) = searcher.search(QUERIES[:1], 1000)
        assert sorted(hits.rows.tolist()) == list(range(1000))
        kept = tmp_path / "s" / "ivf-int8.json"
        assert json.loads(kept.read_text())["trained_on"] == 1000


@needs_faiss
@pytest.mark.parametrize("kind", FAISS_KINDS)
def test_an_empty_store_is_searched_and_filled(tmp_path: Path, kind: str) -> None:
    with cluster_store(tmp_path / "s", 0) as store:
        searcher = open_searcher(store, kind)
        assert [len(hits.rows) for hits in searcher.search(QUERIES, 3)] == [0] * len(QUERIES)
        grow(store, 200, seed=6)
        searcher.refresh()
        assert [len(hits.rows) for hits in searcher.search(QUERIES, 3)] == [3] * len(QUERIES)


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


def test_command_and_node_name_every_back_end(repository: Path) -> None:
    settings = yaml.safe_load((repository / "mca_perception" / "ros" / "parameters.yaml").read_text())
    (allowed,) = settings["retrieval"]["back_end"]["validation"]["one_of<>"]
    assert tuple(allowed) == BACK_ENDS
    (option,) = (p for p in get_command(app).commands["search"].params if p.name == "back_end")
    assert all(name in option.help for name in BACK_ENDS)


def test_unknown_back_ends_are_refused(tmp_path: Path) -> None:
    with (
        cluster_store(tmp_path / "s", 3) as store,
        pytest.raises(RetrievalError, match="choose one of exact"),
    ):
        open_searcher(store, "annoy")
    assert ClusterEncoder().dimension == store.file.dimension
