from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.store import DATABASE, VECTORS, ImageRecord, RetrievalStore
from mca_perception.retrieval.vectors import _moved
from tests.support.retrieval import DIMENSION, IMAGE_MODEL, cluster_store, cluster_vectors, grow

ROUNDING = {"float32": 1e-6, "float16": 1e-3, "int8": 1e-2}


def write(folder: Path, **options) -> RetrievalStore:
    return RetrievalStore.write(folder, **{"image_model": IMAGE_MODEL, "dimension": DIMENSION, **options})


@pytest.mark.parametrize("dtype", ROUNDING)
def test_vectors_come_back(tmp_path: Path, dtype: str) -> None:
    vectors = cluster_vectors(50)
    with write(tmp_path / "s", dtype=dtype) as store:
        store.append([ImageRecord(f"i{i}", f"/p/{i}.jpg", '{"a": 1}') for i in range(50)], 3 * vectors)
    with RetrievalStore.open(tmp_path / "s") as store:
        assert (store.count, store.file.dtype, store.image_model) == (50, dtype, IMAGE_MODEL)
        np.testing.assert_allclose(store.vectors(slice(0, 50)), vectors, atol=ROUNDING[dtype])
        np.testing.assert_allclose(store.vectors([7, 3]), vectors[[7, 3]], atol=ROUNDING[dtype])
        queries = cluster_vectors(3, seed=5)
        for rows in (slice(5, 40), np.array([9, 2, 30])):
            wanted = queries @ store.vectors(rows).T
            np.testing.assert_allclose(store.file.scores(queries, rows), wanted, atol=2e-6)
        assert store.records([7, 3]) == [ImageRecord(f"i{i}", f"/p/{i}.jpg", '{"a": 1}') for i in (7, 3)]
        assert store.rows_of(["i3", "absent"]) == {"i3": 3}
        assert store.rows_of_uris(["/p/7.jpg"]) == {"/p/7.jpg": 7}


def test_rows_are_bytes_on_disk(tmp_path: Path) -> None:
    for dtype, size in (("float32", 4 * DIMENSION), ("float16", 2 * DIMENSION), ("int8", DIMENSION + 4)):
        cluster_store(tmp_path / dtype, 10, dtype=dtype).close()
        assert (tmp_path / dtype / VECTORS).stat().st_size == 10 * size


def test_a_reader_sees_what_is_added_meanwhile(tmp_path: Path) -> None:
    with cluster_store(tmp_path / "s", 5) as writer, RetrievalStore.open(tmp_path / "s") as reader:
        before, version = reader.vectors(slice(0, 5)), reader.version
        assert not reader.refresh()
        grow(writer, 4, seed=1)
        assert reader.refresh()
        assert reader.count == 9
        assert reader.version != version
        np.testing.assert_array_equal(reader.vectors(slice(0, 5)), before)


def test_a_second_writer_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first = cluster_store(tmp_path / "s", 3)
    with pytest.raises(RetrievalError, match=r"written by process \d+"):
        write(tmp_path / "s")
    first.close()
    write(tmp_path / "s").close()


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import os, signal; from tests.support.retrieval import cluster_store; from pathlib import Path\n"
        f"store = cluster_store(Path({str(tmp_path / 's')!r}), 3)\n"
        "store.file.append(store.vectors(slice(0, 2)), 3)\n"  # rows that no transaction names
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[2])
    assert (tmp_path / "s" / VECTORS).stat().st_size == 5 * 4 * DIMENSION
    with RetrievalStore.open(tmp_path / "s") as store:
        assert store.count == 3
    with write(tmp_path / "s") as store:
        assert (tmp_path / "s" / VECTORS).stat().st_size == 3 * 4 * DIMENSION
        grow(store, 1)
        assert store.count == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_model": "another"}, "of image model 0123456789abcdef, not of another"),
        ({"dimension": DIMENSION + 1}, "width 24, not"),
        ({"dtype": "int8"}, "float32 vectors"),
        ({"dtype": "float8"}, "choose one of float32"),
        ({"dimension": 0}, "must be 1 to 8192"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, options, message: str) -> None:
    cluster_store(tmp_path / "s", 3).close()
    with pytest.raises(RetrievalError, match=message):
        write(tmp_path / "s", **options)
    write(tmp_path / "s").close()  # the refusal let go of the lock


def test_a_store_of_another_model_is_not_opened(tmp_path: Path) -> None:
    cluster_store(tmp_path / "s", 3).close()
    with pytest.raises(RetrievalError, match="not of another"):
        RetrievalStore.open(tmp_path / "s", image_model="another")


def test_missing_truncated_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match="mca retrieval index"):
        RetrievalStore.open(tmp_path / "nowhere")
    cluster_store(tmp_path / "s", 6).close()
    with (tmp_path / "s" / VECTORS).open("r+b") as stream:
        stream.truncate(4 * DIMENSION * 5 + 1)
    with pytest.raises(RetrievalError, match="has 5 rows, 6 are recorded: it was truncated"):
        RetrievalStore.open(tmp_path / "s")
    (tmp_path / "s" / DATABASE).write_bytes(b"not a database" * 100)
    with pytest.raises(RetrievalError, match="check that it is a store"):
        RetrievalStore.open(tmp_path / "s")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    with pytest.raises(RetrievalError, match="is not a store"):
        write(tmp_path / "photos")


@pytest.mark.parametrize(
    ("records", "vectors", "message"),
    [
        ([ImageRecord("i1")], cluster_vectors(1), "is there already"),
        ([ImageRecord("new"), ImageRecord("new")], cluster_vectors(2), "is there already"),
        ([ImageRecord("  ")], cluster_vectors(1), "is not valid"),
        ([ImageRecord("x" * 1025)], cluster_vectors(1), "1 to 1024"),
        ([ImageRecord("new")], np.zeros((1, DIMENSION), np.float32), "no direction"),
        ([ImageRecord("new")], np.full((1, DIMENSION), np.nan, np.float32), "NaN"),
        ([ImageRecord("new")], np.ones((1, 3), np.float32), "have shape"),
    ],
)
def test_a_bad_batch_changes_nothing(tmp_path: Path, records, vectors, message: str) -> None:
    with cluster_store(tmp_path / "s", 3) as store:
        with pytest.raises(RetrievalError, match=message):
            store.append(records, vectors)
        assert store.count == 3
        grow(store, 2, seed=2)
        np.testing.assert_allclose(store.vectors([3, 4]), cluster_vectors(2, 2), atol=1e-6)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The limit on the size of a file stands in for the disk's."""
    script = (
        "import resource, signal; from pathlib import Path\n"
        "from mca_perception.errors import RetrievalError; from tests.support.retrieval import cluster_store, grow\n"
        f"store = cluster_store(Path({str(tmp_path / 's')!r}), 100)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))\n"
        "try: grow(store, 100_000, seed=1)\n"
        "except RetrievalError as error: print(error)\n"
    )
    assert resource.RLIMIT_FSIZE
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert "make room and repeat" in run.stdout, run.stderr
    with RetrievalStore.open(tmp_path / "s") as store:
        np.testing.assert_allclose(store.vectors(slice(0, 100)), cluster_vectors(100), atol=1e-6)


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    cluster_store(tmp_path / "s", 3).close()
    with RetrievalStore.open(tmp_path / "s") as store, pytest.raises(RetrievalError, match="to be searched"):
        grow(store, 1)


def test_every_float16_is_moved_exactly() -> None:
    """Normal, subnormal and negative numbers, zeros of both signs; no stored number is infinite."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    np.testing.assert_array_equal(_moved(halves) * np.float32(2.0**112), halves.astype(np.float32))
