from __future__ import annotations

import numpy as np
import pytest

from mca_perception.identification import gallery_search
from mca_perception.identification.gallery_search import ProductIndex, Segment, encode, search


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def clustered(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Around 50 centres, all on one side of the origin, as embeddings of networks are."""
    rows = (
        rng.normal(size=(50, width))[rng.integers(0, 50, count)] + 0.6 * rng.normal(size=(count, width)) + 1
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def products_of(vectors: np.ndarray, per_product: int) -> list[tuple[str, np.ndarray]]:
    return [(f"P{i}", rows) for i, rows in enumerate(np.split(vectors, len(vectors) // per_product))]


@pytest.fixture(scope="module")
def catalogue() -> list[tuple[str, np.ndarray]]:
    """4,000 products with 3 references of 128 numbers: more than are compared in full."""
    return products_of(clustered(np.random.default_rng(0), 12_000, 128), 3)


@pytest.fixture(scope="module")
def index(catalogue) -> ProductIndex:
    return ProductIndex(Segment.from_products(catalogue, 12_000, 128))


def disturbed(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    rows = rows + 0.5 / np.sqrt(rows.shape[1]) * rng.normal(size=rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_codes_tell_the_side_of_the_centre() -> None:
    rows = np.array([[1, 2, 3], [3, 2, 1]], np.float32)
    assert encode(rows, np.array([2, 2, 0], np.float32)).tolist() == [[0b00100000], [0b10100000]]


def test_search_by_codes_finds_the_exact_best(catalogue, index) -> None:
    rng = np.random.default_rng(1)
    targets = rng.choice(len(catalogue), 300, replace=False)
    queries = disturbed(rng, np.stack([catalogue[i][1][1] for i in targets]))
    views = index.views()
    fast, exact = search(views, queries, 1), search(views, queries, 1, exact=True)
    agreeing = np.mean([a[0][0] == b[0][0] for a, b in zip(fast, exact, strict=True)])
    assert agreeing >= 0.995
    assert np.mean([ranking[0][0] == f"P{i}" for ranking, i in zip(exact, targets, strict=True)]) > 0.95
    for a, b in zip(fast, exact, strict=True):
        if a[0][0] == b[0][0]:
            assert a[0][1] == pytest.approx(b[0][1], abs=1e-6)


def test_exact_search_equals_brute_force(catalogue, index) -> None:
    queries = unit(np.random.default_rng(2), 4, 128)
    for query, ranking in zip(queries, search(index.views(), queries, 7, exact=True), strict=True):
        best = sorted(((p, float((rows @ query).max())) for p, rows in catalogue), key=lambda e: -e[1])[:7]
        assert [p for p, _ in ranking] == [p for p, _ in best]
        np.testing.assert_allclose([s for _, s in ranking], [s for _, s in best], atol=1e-5)


def test_changes_lie_over_the_base(catalogue) -> None:
    rng = np.random.default_rng(3)
    index = ProductIndex(Segment.from_products(catalogue, 12_000, 128))
    index.drop("P7")
    index.put("P8", unit(rng, 2, 128))
    index.put("new", catalogue[9][1])
    assert (len(index), index.count) == (4000, 12_000 - 3 - 3 + 2 + 3)
    assert "P7" not in index
    found = search(index.views(), catalogue[7][1], 5)
    assert all(product != "P7" for ranking in found for product, _ in ranking)
    assert {p for p, _ in search(index.views(), catalogue[9][1][:1], 2)[0]} == {"P9", "new"}
    assert search(index.views(), index.rows_of("P8"), 1)[0][0] == ("P8", pytest.approx(1.0))
    assert index.counts()["P8"] == 2


def test_view_stays_as_it_was(catalogue) -> None:
    index = ProductIndex(Segment.from_products(catalogue, 12_000, 128))
    index.put("early", catalogue[0][1])
    views = index.views()
    before = search(views, catalogue[0][1], 3)
    index.drop("P0")
    index.drop("early")
    for i in range(300):  # more than there is room for
        index.put(f"later {i}", catalogue[0][1])
    assert search(views, catalogue[0][1], 3) == before


def test_emptied_index_takes_another_width() -> None:
    index = ProductIndex()
    index.put("a", np.eye(1, 4, dtype=np.float32))
    index.drop("a")
    assert (index.dimension, len(index), index.views()) == (None, 0, [])
    index.put("b", np.eye(1, 6, dtype=np.float32))
    assert index.dimension == 6


def test_removed_references_do_not_use_up_the_candidates(monkeypatch) -> None:
    monkeypatch.setattr(gallery_search, "EXACT_ROWS", 10)
    rng = np.random.default_rng(4)
    near = disturbed(rng, np.repeat(unit(rng, 1, 32), 2000, axis=0))
    index = ProductIndex(Segment.from_products(products_of(near, 1), 2000, 32))
    for i in range(1990):
        index.drop(f"P{i}")
    found = search(index.views(), near[:1], 20)[0]
    assert sorted(p for p, _ in found) == [f"P{i}" for i in range(1990, 2000)]
