"""Encoding by Ray Data, with real workers on this machine, beside encoding in this process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.encoder import DualEncoder
from mca_perception.retrieval.indexing import IndexCounts, index_images
from mca_perception.retrieval.ray_encoding import ray_encoding
from mca_perception.retrieval.sources import open_source
from mca_perception.retrieval.store import RetrievalStore
from tests.support.retrieval import write_colour_encoder, write_colour_photos

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pytest.importorskip("ray.data")
pytestmark = pytest.mark.xdist_group("ray")

WORKERS, BATCH = 2, 16


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    bundle = write_colour_encoder(tmp_path_factory.mktemp("models") / "colours")
    return DualEncoder.from_bundle(bundle.path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 pictures and a broken one."""
    return write_colour_photos(tmp_path_factory.mktemp("photos"), each=100, size=8)


def index(source: Path, folder: Path, encoder: DualEncoder, **options: Any) -> IndexCounts:
    with RetrievalStore.write(
        folder, image_model=encoder.image_fingerprint, dimension=encoder.dimension
    ) as store:
        return index_images(open_source(source), store, encoder, batch=BATCH, **options)


def index_on_ray(source: Path, folder: Path, encoder: DualEncoder, **options: Any) -> IndexCounts:
    with ray_encoding(encoder.bundle.path, encoder.image_fingerprint, workers=WORKERS) as encode:
        return index(source, folder, encoder, encode=encode, **options)


def processes(title: str) -> list[int]:
    """Numbers of the processes that call themselves so; Ray's workers bear the name of their task."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if title.encode() in file.read_bytes():
                found.append(int(file.parent.name))
    return found


def assert_same_content(one: Path, other: Path) -> None:
    with RetrievalStore.open(one) as a, RetrievalStore.open(other) as b:
        assert a.records(range(a.count)) == b.records(range(b.count))
        np.testing.assert_allclose(a.vectors(slice(0, a.count)), b.vectors(slice(0, b.count)), atol=1e-3)
        assert a.skipped() == b.skipped()
        assert (a.meta["job"], b.meta["job"]) == ("done", "done")


def test_the_content_is_that_of_one_process(photos: Path, encoder: DualEncoder, tmp_path: Path) -> None:
    index(photos, tmp_path / "plain", encoder)
    counts = index_on_ray(photos, tmp_path / "ray", encoder)
    assert (counts.added, dict(counts.skipped)) == (600, {"image not readable": 1})
    assert_same_content(tmp_path / "ray", tmp_path / "plain")


def test_a_run_that_stopped_goes_on(photos: Path, encoder: DualEncoder, tmp_path: Path) -> None:
    index(photos, tmp_path / "plain", encoder)
    calls = iter([False, False, True])
    counts = index_on_ray(photos, tmp_path / "ray", encoder, cancelled=lambda: next(calls))
    assert (counts.cancelled, counts.added + counts.skipped.total()) == (True, 2 * BATCH)
    counts = index_on_ray(photos, tmp_path / "ray", encoder)
    assert counts.already == 2 * BATCH
    assert_same_content(tmp_path / "ray", tmp_path / "plain")


def test_a_worker_that_is_killed_is_replaced(photos: Path, encoder: DualEncoder, tmp_path: Path) -> None:
    index(photos, tmp_path / "plain", encoder)
    killed = threading.Event()

    def kill_one(_: Any) -> None:
        if not killed.is_set() and (workers := processes("MapBatches(_Worker)")):
            os.kill(workers[0], signal.SIGKILL)
            killed.set()

    index_on_ray(photos, tmp_path / "ray", encoder, progress=kill_one)
    assert killed.is_set()
    assert_same_content(tmp_path / "ray", tmp_path / "plain")


def test_parquet_comes_with_its_captions(photos: Path, encoder: DualEncoder, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"caption": [f"picture {i}"], "image": {"bytes": file.read_bytes()}}
        for i, file in enumerate(sorted(photos.glob("red/*.png")))
    ]
    (tmp_path / "images").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "images" / "0.parquet", row_group_size=30)
    index(tmp_path / "images", tmp_path / "plain", encoder)
    assert index_on_ray(tmp_path / "images", tmp_path / "ray", encoder).added == 100
    assert_same_content(tmp_path / "ray", tmp_path / "plain")
    with RetrievalStore.open(tmp_path / "ray") as store:
        (record,) = store.records([31])
    assert (record.image_id, record.metadata) == ("0.parquet#31", '{"caption": "picture 31"}')


def test_a_bundle_that_differs_on_the_worker_is_refused(
    photos: Path, encoder: DualEncoder, tmp_path: Path
) -> None:
    with (
        pytest.raises(RetrievalError, match="has image side"),
        ray_encoding(encoder.bundle.path, "another", workers=1) as encode,
    ):
        index(photos, tmp_path / "ray", encoder, encode=encode)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", r"no Ray cluster at 127\.0\.0\.1:9 .*refused"),
        ("cluster", "it is not HOST:PORT"),
        ("auto", "no Ray cluster at auto"),
    ],
)
def test_a_cluster_that_is_not_there_is_named(encoder: DualEncoder, address: str, message: str) -> None:
    with (
        pytest.raises(RetrievalError, match=message),
        ray_encoding(encoder.bundle.path, encoder.image_fingerprint, address=address),
    ):
        pass
