from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.indexing import index_images
from mca_perception.retrieval.merging import Share, merge_stores, parse_share
from mca_perception.retrieval.sources import FolderSource
from mca_perception.retrieval.store import RetrievalStore
from tests.support.datasets import write_image
from tests.support.retrieval import DIMENSION, IMAGE_MODEL, ClusterEncoder, cluster_store


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(20):
        write_image(folder / f"{i:02d}.png", rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    (folder / "07.png").write_bytes(b"broken")
    return folder


def writer(folder: Path, **options) -> RetrievalStore:
    return RetrievalStore.write(folder, **{"image_model": IMAGE_MODEL, "dimension": DIMENSION, **options})


def test_shares_are_the_whole_and_stores_are_joined(photos: Path, tmp_path: Path) -> None:
    shares = [Share(FolderSource(photos), number, 3) for number in (1, 2, 3)]
    assert [len(share) for share in shares] == [7, 7, 6]
    for number, share in enumerate(shares):
        with writer(tmp_path / f"part{number}") as store:
            index_images(share, store, ClusterEncoder(), batch=4, bundle="/models/mine")
            assert store.count + len(store.skipped()) == len(share)
    parts = [RetrievalStore.open(tmp_path / f"part{number}") for number in range(3)]
    with writer(tmp_path / "joined") as joined:
        assert merge_stores(joined, parts[:2]) == {"added": 13, "already": 0}
        assert merge_stores(joined, parts) == {"added": 6, "already": 13}
        assert joined.meta["bundle"] == "/models/mine"
        assert joined.skipped() == {"07.png": "image not readable"}
    with writer(tmp_path / "whole") as whole, RetrievalStore.open(tmp_path / "joined") as joined:
        index_images(FolderSource(photos), whole, ClusterEncoder())
        assert sorted(joined.image_ids()) == sorted(whole.image_ids())
        for name, row in whole.rows_of(list(whole.image_ids())).items():
            found = joined.vectors([joined.rows_of([name])[name]])
            np.testing.assert_allclose(found, whole.vectors([row]), atol=1e-3)
    for part in parts:
        part.close()


def test_stores_that_cannot_be_joined(photos: Path, tmp_path: Path) -> None:
    with writer(tmp_path / "part") as store:
        index_images(FolderSource(photos), store, ClusterEncoder(), cancelled=lambda: True)
    cluster_store(tmp_path / "other", 3).close()
    with (
        writer(tmp_path / "target", image_model="another") as target,
        RetrievalStore.open(tmp_path / "other") as other,
        pytest.raises(RetrievalError, match="join stores of one image side"),
    ):
        merge_stores(target, [other])
    with (
        writer(tmp_path / "fresh") as target,
        RetrievalStore.open(tmp_path / "part") as part,
        pytest.raises(RetrievalError, match="is not finished"),
    ):
        merge_stores(target, [part])


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "a/b", "1/5000", "-1/3"])
def test_shares_are_written_i_of_n(text: str) -> None:
    assert parse_share("2/8") == (2, 8)
    with pytest.raises(RetrievalError, match="1/8 for the first of eight"):
        parse_share(text)
