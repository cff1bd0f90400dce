from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mca_perception.errors import GalleryError
from mca_perception.identification.gallery import Gallery


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "products.gallery"


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def fill(gallery: Gallery, products: int = 40, seed: int = 0, width: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    references = {f"P{i:03d}": unit(rng, int(rng.integers(1, 7)), width) for i in range(products)}
    gallery.add_many(references)
    return references


def brute_force(references: dict[str, np.ndarray], query: np.ndarray, k: int, manifest=None):
    allowed = references if manifest is None else {p: references[p] for p in manifest if p in references}
    best = [(product, float((rows @ query).max())) for product, rows in allowed.items()]
    return sorted(best, key=lambda entry: -entry[1])[:k]


def assert_same_ranking(found, expected) -> None:
    assert [p for p, _ in found] == [p for p, _ in expected]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 40, 100])
@pytest.mark.parametrize("manifest", [None, ["P003", "P010", "nowhere", "P003"], [], ["nowhere"]])
def test_search_equals_brute_force(path, k, manifest) -> None:
    with Gallery.open(path) as gallery:
        references = fill(gallery)
        queries = unit(np.random.default_rng(1), 5, 16)
        for found, query in zip(gallery.search(queries * 7, k, manifest), queries, strict=True):
            assert_same_ranking(found, brute_force(references, query, k, manifest))


def test_search_stays_exact_through_changes(path) -> None:
    rng = np.random.default_rng(2)
    with Gallery.open(path) as gallery:
        references = fill(gallery)
        for step in range(60):
            product = f"P{rng.integers(0, 50):03d}"
            if product in references and step % 3 == 0:
                gallery.remove(product)
                del references[product]
            else:
                references[product] = unit(rng, int(rng.integers(1, 9)), 16)
                gallery.add(product, references[product])
            query = unit(rng, 16)
            assert_same_ranking(gallery.search(query, 5)[0], brute_force(references, query, 5))
    with Gallery.open(path, create=False) as reopened:
        assert reopened.reference_counts() == {p: len(rows) for p, rows in references.items()}
        assert_same_ranking(reopened.search(query, 5)[0], brute_force(references, query, 5))


def test_empty_gallery_ranks_nothing(path) -> None:
    with Gallery.open(path) as gallery:
        assert gallery.search(np.ones((2, 8)), 3) == [[], []]
        assert (len(gallery), gallery.dimension, gallery.model, gallery.products()) == (0, None, None, [])


def test_no_queries_give_no_rankings(path) -> None:
    with Gallery.open(path) as gallery:
        fill(gallery)
        assert gallery.search(np.zeros((0, 16)), 3) == []


def test_unknown_products_of_a_manifest_are_named(path) -> None:
    with Gallery.open(path) as gallery:
        fill(gallery)
        assert gallery.unknown(["X", "P001", "Y", "X"]) == ["X", "Y"]


def test_add_is_durable_when_it_returns(path) -> None:
    script = (
        "import os, sys, numpy as np\n"
        "from mca_perception.identification.gallery import Gallery\n"
        "g = Gallery.open(sys.argv[1], model='m')\n"
        "g.add('kept', np.eye(2, 4))\n"
        "os._exit(9)\n"  # no close, no destructor
    )
    run = subprocess.run([sys.executable, "-c", script, str(path)], timeout=60, check=False)
    assert run.returncode == 9
    with Gallery.open(path, create=False) as gallery:
        assert gallery.reference_counts() == {"kept": 2}
        assert gallery.model == "m"


def test_file_is_written_ahead_and_fully_synchronised(path) -> None:
    with Gallery.open(path) as gallery, gallery.store.writing() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_changes_by_another_connection_are_seen(path) -> None:
    with Gallery.open(path) as reader, Gallery.open(path) as writer:
        writer.add("a", [[1.0, 0.0]])
        assert reader.search([[1.0, 0.1]], 1)[0][0][0] == "a"
        writer.add("b", [[0.0, 1.0]])
        writer.remove("a")
        assert reader.products() == ["b"]
        reader.add("c", [[1.0, 1.0]])
        assert writer.products() == ["b", "c"]


def test_threads_share_one_gallery(path) -> None:
    rng = np.random.default_rng(3)
    with Gallery.open(path) as gallery:
        rows = unit(rng, 24, 8)

        def work(i: int) -> str:
            gallery.add(f"T{i}", rows[i])
            return gallery.search(rows[i], 1)[0][0][0]

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(24))) == [f"T{i}" for i in range(24)]
        assert len(gallery) == 24


@pytest.mark.parametrize(
    ("product_id", "embeddings", "message"),
    [
        ("", np.ones((1, 4)), "not valid"),
        ("   ", np.ones((1, 4)), "not valid"),
        ("x" * 257, np.ones((1, 4)), "not valid"),
        (17, np.ones((1, 4)), "not valid"),
        ("a", np.array([[1, np.nan, 0, 0]]), "NaN"),
        ("a", np.array([[1, np.inf, 0, 0]]), "NaN or infinity"),
        ("a", np.zeros((1, 4)), "zero"),
        ("a", np.zeros((0, 4)), "shape"),
        ("a", np.ones((1, 2, 4)), "shape"),
        ("a", np.ones((1, 9000)), "shape"),
        ("a", np.ones((1001, 4)), "over 1000"),
    ],
)
def test_bad_products_are_refused_and_change_nothing(path, product_id, embeddings, message) -> None:
    with Gallery.open(path) as gallery:
        gallery.add("good", np.ones((1, 4)))
        with pytest.raises(GalleryError, match=message):
            gallery.add_many({"also good": np.ones((1, 4)), product_id: embeddings})
        assert gallery.products() == ["good"]


def test_another_width_is_refused(path) -> None:
    with Gallery.open(path) as gallery:
        gallery.add("a", np.ones((1, 4)))
        with pytest.raises(GalleryError, match="width 5"):
            gallery.add("b", np.ones((1, 5)))
        with pytest.raises(GalleryError, match="width 5"):
            gallery.search(np.ones((1, 5)), 1)
        gallery.remove("a")
        gallery.add("b", np.ones((1, 5)))
        assert gallery.dimension == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.full((1, 4), np.nan), 1), "NaN"),
        ((np.zeros((1, 4)), 1), "zero"),
        ((np.ones((1, 4)), 0), "at least 1"),
        ((np.ones((1, 4)), 1, "P001"), "list of product ids"),
    ],
)
def test_bad_searches_are_refused(path, arguments, message) -> None:
    with Gallery.open(path) as gallery:
        gallery.add("a", np.ones((1, 4)))
        with pytest.raises(GalleryError, match=message):
            gallery.search(*arguments)


def test_removing_an_absent_product_is_refused(path) -> None:
    with Gallery.open(path) as gallery, pytest.raises(GalleryError, match="has no product 'x'"):
        gallery.remove("x")


def test_model_is_recorded_and_compared(path) -> None:
    with Gallery.open(path, model="first") as gallery:
        assert gallery.model == "first"
    with Gallery.open(path, model="second") as gallery:  # still empty: may change hands
        gallery.add("a", np.ones(4))
    with pytest.raises(GalleryError, match="model second, not of first"):
        Gallery.open(path, model="first")
    with Gallery.open(path) as gallery:
        assert gallery.model == "second"


def test_missing_file_is_refused_without_create(path) -> None:
    with pytest.raises(GalleryError, match="does not exist"):
        Gallery.open(path, create=False)
    assert not path.exists()


@pytest.mark.parametrize(
    "product_id", ["0007", "007", "7", "-7", "B00X", "Größe 4", "a\nb", "'; DROP TABLE product"]
)
def test_ids_are_text(path, product_id) -> None:
    with Gallery.open(path) as gallery:
        gallery.add_many({product_id: np.eye(1, 4), "other": np.eye(1, 4, 1)})
    with Gallery.open(path) as gallery:
        assert gallery.products() == sorted([product_id, "other"])
        assert gallery.search(np.eye(1, 4), 1)[0][0][0] == product_id
        gallery.remove(product_id)
        assert gallery.products() == ["other"]


def test_images_are_kept_with_their_product(path) -> None:
    with Gallery.open(path) as gallery:
        gallery.add("a", np.ones((2, 4)), ["/photos/front.jpg", b"encoded"])
        gallery.add("b", np.ones(4))
        assert gallery.images(["b", "a"]) == {"b": [], "a": ["/photos/front.jpg", b"encoded"]}
        with pytest.raises(GalleryError, match="2 embeddings and 1 images"):
            gallery.add("a", np.ones((2, 4)), ["one.jpg"])
        gallery.add("a", np.ones(4), ["new.jpg"])
        assert gallery.images(["a"]) == {"a": ["new.jpg"]}
        gallery.remove("a")
        assert gallery.images(["a"]) == {"a": []}


def test_embeddings_come_back_normalised(path) -> None:
    with Gallery.open(path) as gallery:
        gallery.add("a", [[3.0, 4.0]])
        np.testing.assert_allclose(gallery.embeddings("a"), [[0.6, 0.8]], atol=1e-7)
        with pytest.raises(GalleryError, match="no product 'b'"):
            gallery.embeddings("b")


def test_searches_go_on_while_products_change(path) -> None:
    rng = np.random.default_rng(5)
    with Gallery.open(path) as gallery:
        references = fill(gallery)
        query = unit(rng, 16)
        stable = {p: references[p] for p in list(references)[::2]}
        expected = brute_force(stable, query, 20)

        def change(i: int) -> None:
            product = f"P{2 * (i % 20) + 1:03d}"  # an odd one
            gallery.add(product, unit(rng, 3, 16)) if i % 3 else gallery.add(f"N{i}", unit(rng, 16))

        def ask(_: int) -> list[tuple[str, float]]:
            return [entry for entry in gallery.search(query, 200)[0] if entry[0] in stable]

        with ThreadPoolExecutor(4) as pool:
            changes = pool.map(change, range(40))
            answers = list(pool.map(ask, range(80)))
            list(changes)
    for answer in answers:
        assert_same_ranking(answer[:20], expected)


def test_foreign_file_is_refused(path) -> None:
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(GalleryError, match="cannot be used"):
        Gallery.open(path)


def test_folder_is_refused(tmp_path) -> None:
    with pytest.raises(GalleryError, match="cannot be opened"):
        Gallery.open(tmp_path)


def edit(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


def test_other_version_is_refused(path) -> None:
    Gallery.open(path).close()
    edit(path, "UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    with pytest.raises(GalleryError, match="version 99"):
        Gallery.open(path)


@pytest.mark.parametrize(
    "blob", [b"123", b"", np.array([np.nan] * 4, "<f4").tobytes(), b"\0" * 16, b"\1" * 20]
)
def test_damaged_embeddings_are_refused(path, blob) -> None:
    with Gallery.open(path) as gallery:
        gallery.add_many({"a": np.ones((2, 4)), "b": np.ones((1, 4))})
    edit(path, "UPDATE product SET embeddings = ? WHERE product_id = 'b'", blob)
    with pytest.raises(GalleryError, match=r"damaged|width"):
        Gallery.open(path)
