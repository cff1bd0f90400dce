from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mca_perception.errors import InvalidImageError, RetrievalError
from mca_perception.retrieval.indexing import index_images
from mca_perception.retrieval.sources import FolderSource, ImageReader, open_image, open_source
from mca_perception.retrieval.store import RetrievalStore
from tests.support.datasets import write_image
from tests.support.retrieval import DIMENSION, IMAGE_MODEL, ClusterEncoder

ROOT = Path(__file__).parents[2]
COUNT = 60


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """60 small pictures in two folders, two of them broken, and a text file."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        write_image(
            folder / f"part{i % 2}" / f"{i:03d}.png", rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)
        )
    (folder / "part0" / "004.png").write_bytes(b"broken")
    (folder / "part1" / "empty.jpg").write_bytes(b"")
    (folder / "part1" / "notes.txt").write_text("no image")
    return folder


def writer(folder: Path) -> RetrievalStore:
    return RetrievalStore.write(folder, image_model=IMAGE_MODEL, dimension=DIMENSION, dtype="float32")


def content(folder: Path) -> tuple[list[str], bytes, dict[str, str], str]:
    with RetrievalStore.open(folder) as store:
        vectors = store.vectors(slice(0, store.count)).tobytes()
        return list(store.image_ids()), vectors, store.skipped(), store.meta.get("job", "")


def test_a_folder_comes_in_and_broken_images_are_counted(photos: Path, tmp_path: Path) -> None:
    seen = []
    with writer(tmp_path / "s") as store:
        counts = index_images(FolderSource(photos), store, ClusterEncoder(), batch=7, progress=seen.append)
        assert (counts.added, counts.already, counts.skipped) == (COUNT - 1, 0, {"image not readable": 2})
        again = index_images(FolderSource(photos), store, ClusterEncoder())
        assert (again.added, again.already, again.skipped.total()) == (0, COUNT + 1, 0)
    ids, _, skipped, job = content(tmp_path / "s")
    assert ids == sorted(ids)
    assert ids[0] == "part0/000.png"
    assert set(skipped) == {"part0/004.png", "part1/empty.jpg"}
    assert job == "done"
    assert [seen[0].stage, seen[-1].stage] == ["scan", "encode"]
    assert (seen[-1].done, seen[-1].total, seen[-1].skipped) == (COUNT + 1, COUNT + 1, 2)
    assert seen[-1].rate > 0


def test_new_images_are_appended(photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    write_image(target / "b.png", np.full((5, 5, 3), 9, np.uint8))
    with writer(tmp_path / "s") as store:
        index_images(FolderSource(target), store, ClusterEncoder())
        write_image(target / "a.png", np.full((5, 5, 3), 200, np.uint8))
        assert index_images(FolderSource(target), store, ClusterEncoder()).added == 1
        assert list(store.image_ids()) == ["b.png", "a.png"]


def test_an_id_of_another_place_is_left_out_and_counted(tmp_path: Path) -> None:
    """Cameras number their pictures alike: a second folder must not look as if it were in the store."""
    for camera, names in (("left", "ab"), ("right", "bc")):
        for name in names:
            write_image(tmp_path / camera / f"{name}.png", np.full((5, 5, 3), ord(name), np.uint8))
    with writer(tmp_path / "s") as store:
        index_images(FolderSource(tmp_path / "left"), store, ClusterEncoder())
        counts = index_images(FolderSource(tmp_path / "right"), store, ClusterEncoder())
        ((reason, count),) = counts.skipped.items()
        assert (counts.added, counts.already, count) == (1, 0, 1)
        assert "from another place" in reason
        assert store.known(["b.png", "c.png", "d.png"]) == {
            "b.png": str(tmp_path / "left" / "b.png"),
            "c.png": str(tmp_path / "right" / "c.png"),
        }
        assert index_images(FolderSource(tmp_path / "left"), store, ClusterEncoder()).already == 2


def test_a_cancelled_run_keeps_what_is_done_and_is_resumed(photos: Path, tmp_path: Path) -> None:
    with writer(tmp_path / "whole") as store:
        index_images(FolderSource(photos), store, ClusterEncoder(), batch=8)
    calls = iter([False, False, True])
    with writer(tmp_path / "s") as store:
        counts = index_images(
            FolderSource(photos), store, ClusterEncoder(), batch=8, cancelled=lambda: next(calls)
        )
        assert counts.cancelled
        assert 0 < store.count < COUNT
        with pytest.raises(RetrievalError, match="is not finished"):
            index_images(FolderSource(photos), store, ClusterEncoder(), batch=8, resume=False)
        index_images(FolderSource(photos), store, ClusterEncoder(), batch=8)
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_another_model_is_refused(photos: Path, tmp_path: Path) -> None:
    with writer(tmp_path / "s") as store, pytest.raises(RetrievalError, match="not of another"):
        index_images(FolderSource(photos), store, ClusterEncoder(image_fingerprint="another"))


INDEX = """
import sys, time
from pathlib import Path
from mca_perception.retrieval.indexing import index_images
from mca_perception.retrieval.sources import FolderSource
from mca_perception.retrieval.store import RetrievalStore
from tests.support.retrieval import DIMENSION, IMAGE_MODEL, ClusterEncoder

class Slow(ClusterEncoder):
    def encode_images(self, images):
        time.sleep(0.02)
        return super().encode_images(images)

store = RetrievalStore.write(sys.argv[2], image_model=IMAGE_MODEL, dimension=DIMENSION, dtype="float32")
print("go", flush=True)
index_images(FolderSource(Path(sys.argv[1])), store, Slow(), batch=4)
"""


def test_kill_minus_9_anywhere_and_the_content_is_the_same(photos: Path, tmp_path: Path) -> None:
    """The short form of benchmarks/retrieval_crashes.py."""
    with writer(tmp_path / "whole") as store:
        index_images(FolderSource(photos), store, ClusterEncoder(), batch=4)
    rng = random.Random(3)
    kills = 0
    for _ in range(40):
        run = subprocess.Popen(
            [sys.executable, "-c", INDEX, str(photos), str(tmp_path / "s")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert run.stdout is not None
        assert run.stdout.readline() == b"go\n"
        if kills < 4:
            time.sleep(rng.uniform(0.0, 0.12))
            run.send_signal(signal.SIGKILL)
        kills += run.wait(60) == -signal.SIGKILL
        run.stdout.close()
        ids, vectors, _, job = content(tmp_path / "s")  # opens after every kill
        assert len(vectors) == len(ids) * 4 * DIMENSION
        if job == "done":
            break
    assert kills >= 2
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_ids_that_are_too_long_are_counted_and_the_rest_comes_in(photos: Path, tmp_path: Path) -> None:
    picture = (photos / "part0" / "000.png").read_bytes()
    deep = tmp_path.joinpath("photos", *["d" * 250] * 4, "d" * 30)  # with the name of the file beyond 1,024
    deep.mkdir(parents=True)
    for file in (deep / "beyond.png", tmp_path / "photos" / "near.png"):
        file.write_bytes(picture)
    with writer(tmp_path / "s") as store:
        counts = index_images(FolderSource(tmp_path / "photos"), store, ClusterEncoder())
        assert (counts.added, counts.skipped) == (1, {"id empty or too long": 1})
        assert list(store.image_ids()) == ["near.png"]


def test_rows_of_parquet_with_unusable_ids_are_counted(photos: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    picture = (photos / "part0" / "000.png").read_bytes()
    rows = [{"image_id": name, "image": picture} for name in ("fits", "x" * 1025, "  ", "fits too")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=1)
    with writer(tmp_path / "s") as store:
        counts = index_images(open_source(tmp_path / "rows.parquet"), store, ClusterEncoder())
        assert (counts.added, counts.skipped) == (2, {"id empty or too long": 2})
        reader = ImageReader()
        for record in store.records([1, 0]):
            assert reader.open(record.uri).shape == (9, 12, 3)
    with pytest.raises(InvalidImageError, match="beyond the end"):
        reader.open(f"{tmp_path / 'rows.parquet'}#4")


def test_parquet_comes_in_with_captions(photos: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    files = sorted(photos.glob("part1/*.png"))[:5]
    rows = [
        {
            "image_id": f"u{i}",
            "language": ["de", "en"],
            "caption_reference_description": ["auf Deutsch", f"in English {i}"],
            "image": {"bytes": file.read_bytes() if i != 2 else b"broken", "path": file.name},
        }
        for i, file in enumerate(files)
    ]
    (tmp_path / "images").mkdir()
    for part, chosen in enumerate((rows[:3], [*rows[3:], rows[0]])):  # one id twice
        parquet.write_table(pyarrow.Table.from_pylist(chosen), tmp_path / "images" / f"{part}.parquet")
    with writer(tmp_path / "s") as store:
        source = open_source(tmp_path / "images")
        assert len(source) == 6
        counts = index_images(source, store, ClusterEncoder(), batch=2)
        assert counts.added == 4
        assert dict(counts.skipped) == {"id that was there before": 1, "image not readable": 1}
        assert list(store.image_ids()) == ["u0", "u1", "u3", "u4"]
        (record,) = store.records([2])
        assert record.metadata == '{"caption_reference_description": "in English 3"}'
        from mca_perception.datasets.images import read_rgb

        np.testing.assert_array_equal(open_image(record.uri), read_rgb(files[3]))


@pytest.mark.parametrize(("name", "message"), [("nowhere", "is not a folder"), ("empty", "holds no image")])
def test_sources_that_are_none(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RetrievalError, match=message):
        open_source(tmp_path / name)
