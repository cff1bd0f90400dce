from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mca_perception.identification import gallery as gallery_module
from mca_perception.identification.gallery import Gallery
from mca_perception.identification.gallery_cache import cache_path, read_cache, write_cache


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def products() -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(f"Ö{i}\n", unit(rng, 1 + i % 3, 20)) for i in range(30)]


@pytest.fixture
def path(tmp_path: Path, monkeypatch) -> Path:
    """Where a gallery with 60 references lies, for which the search matrix is kept."""
    monkeypatch.setattr(gallery_module, "CACHED_REFERENCES", 50)
    path = tmp_path / "shop.gallery"
    rng = np.random.default_rng(1)
    with Gallery.open(path) as gallery:
        gallery.add_many({f"P{i:02d}": unit(rng, 2, 16) for i in range(30)})
    Gallery.open(path).close()
    return path


def test_what_is_written_is_read(products, tmp_path) -> None:
    written = write_cache(tmp_path / "m", "store", 7, products)
    found, generation = read_cache(tmp_path / "m", "store")
    assert generation == 7
    for segment in (written, found):
        assert (len(segment), segment.count) == (30, 60)
        for product, rows in products:
            np.testing.assert_array_equal(segment.rows_of(product), rows)
    assert not found.vectors.flags.writeable
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_nothing_is_written_of_no_products(tmp_path) -> None:
    assert write_cache(tmp_path / "m", "store", 1, []) is None
    assert write_cache(tmp_path / "no folder" / "m", "store", 1, []) is None
    assert not list(tmp_path.iterdir())


def change_byte(position: int):
    def change(content: bytes) -> bytes:
        return content[:position] + bytes([content[position] ^ 1]) + content[position:][1:]

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:4000],
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: b"[]" + content[2:],
        lambda content: content.replace(b'"rows": 60', b'"rows": -1'),
        lambda content: content.replace(b'"format": 1', b'"format": 2'),
        change_byte(-1),
        change_byte(-400),
        lambda content: os.urandom(len(content)),
    ],
)
def test_damaged_matrix_is_not_used(products, tmp_path, damage) -> None:
    path = tmp_path / "m"
    write_cache(path, "store", 7, products)
    path.write_bytes(damage(path.read_bytes()))
    assert read_cache(path, "store") is None


def test_matrix_of_another_store_is_not_used(products, tmp_path) -> None:
    write_cache(tmp_path / "m", "store", 7, products)
    assert read_cache(tmp_path / "m", "other") is None


def test_leftovers_of_dead_processes_go(products, tmp_path) -> None:
    dead, alive = tmp_path / ".m.99999999.1.part", tmp_path / f".m.{os.getppid()}.1.part"
    dead.touch()
    alive.touch()
    write_cache(tmp_path / "m", "store", 7, products)
    assert (dead.exists(), alive.exists()) == (False, True)


def test_gallery_uses_the_matrix_and_what_changed_since(path) -> None:
    assert read_cache(cache_path(path), store_of(path)) is not None
    before = cache_path(path).stat().st_mtime_ns
    with Gallery.open(path) as gallery:
        gallery.add("new", np.eye(1, 16))
        gallery.remove("P03")
        assert gallery.search(np.eye(1, 16), 1)[0][0][0] == "new"
    with Gallery.open(path) as gallery:
        assert gallery.products() == sorted({f"P{i:02d}" for i in range(30)} - {"P03"} | {"new"})
    assert cache_path(path).stat().st_mtime_ns != before  # two of 30 are more than 5 %
    with Gallery.open(path) as gallery:
        assert "P03" not in gallery.products()


def store_of(path: Path) -> str:
    with Gallery.open(path) as gallery, gallery.store.reading() as connection:
        return gallery.store.meta(connection)["store"]


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"damaged"), lambda p: None]
)
def test_lost_or_damaged_matrix_changes_no_answer(path, damage) -> None:
    query = unit(np.random.default_rng(2), 16)
    with Gallery.open(path) as gallery:
        expected = gallery.search(query, 5)
    damage(cache_path(path))
    with Gallery.open(path) as gallery:
        assert gallery.search(query, 5) == expected
    assert read_cache(cache_path(path), store_of(path)) is not None


def test_matrix_that_cannot_be_written_is_kept_in_memory(path) -> None:
    query = unit(np.random.default_rng(3), 16)
    with Gallery.open(path) as gallery:
        expected = gallery.search(query, 5)
    cache_path(path).unlink()
    cache_path(path).mkdir()  # in the way of the file
    with Gallery.open(path) as gallery:
        assert gallery.search(query, 5) == expected
        gallery.add("new", np.eye(1, 16))
        assert gallery.search(np.eye(1, 16), 1)[0][0][0] == "new"
