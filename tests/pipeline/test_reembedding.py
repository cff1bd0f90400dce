from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mca_perception.datasets.armbench import find_references
from mca_perception.datasets.images import read_rgb
from mca_perception.errors import GalleryError
from mca_perception.identification.gallery import Gallery
from mca_perception.identification.gallery_reembed import Reembedding
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.references import import_references, reembed, small_copy
from tests.support.bundles import PALETTE, reference_photo, write_colour_bundle
from tests.support.datasets import write_reference_images


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory) -> tuple[PerceptionPipeline, PerceptionPipeline]:
    """The same model with two margins, hence two fingerprints."""
    folder = tmp_path_factory.mktemp("models")
    first = write_colour_bundle(folder / "first")
    second = write_colour_bundle(folder / "second", identification={"margin": 0.3})
    return PerceptionPipeline.from_bundle(first.path), PerceptionPipeline.from_bundle(second.path)


@pytest.fixture(params=[False, True], ids=["paths", "copies"])
def path(request, pipelines, tmp_path: Path) -> Path:
    write_reference_images(tmp_path)
    with Gallery.open(tmp_path / "g", model=pipelines[0].bundle.embedding_fingerprint) as gallery:
        import_references(pipelines[0], gallery, find_references(tmp_path), keep_copies=request.param)
    if request.param:
        for image in (tmp_path / "Reference_Images").rglob("*.png"):
            image.unlink()
    return tmp_path / "g"


def test_all_products_get_new_embeddings(pipelines, path) -> None:
    with Gallery.open(path) as gallery, Gallery.open(path) as other:
        counts = reembed(pipelines[1], gallery)
        assert (counts.products, counts.images, +counts.skipped) == (6, 12, {})
        with pytest.raises(GalleryError, match="open it again with that model"):
            other.search(np.ones(4), 1)
        with pytest.raises(GalleryError, match="open it again with that model"):
            other.add("x", np.ones(4))
    with Gallery.open(path, model=pipelines[1].bundle.embedding_fingerprint) as gallery:
        assert gallery.products() == sorted(PALETTE)
        query = pipelines[1].embed_references([reference_photo("cyan", 80)])
        assert gallery.search(query, 1)[0][0][0] == "cyan"
        assert len(gallery.images(["cyan"])["cyan"]) == 2
    with pytest.raises(GalleryError, match="mca gallery reembed"):
        Gallery.open(path, model=pipelines[0].bundle.embedding_fingerprint)


def test_products_without_images_are_named_and_stay(pipelines, path, tmp_path) -> None:
    with Gallery.open(path) as gallery:
        gallery.add("no image", np.eye(1, 4))
        with pytest.raises(GalleryError, match=r"1 products without a readable image, such as 'no image'"):
            reembed(pipelines[1], gallery)
        assert gallery.model == pipelines[0].bundle.embedding_fingerprint
        assert len(gallery) == 7
        assert (
            reembed(pipelines[1], gallery, allow_missing=True).products == 0
        )  # the others were staged before
    with Gallery.open(path) as gallery:
        assert gallery.products() == sorted(PALETTE)


def test_images_found_elsewhere_take_the_place_of_lost_ones(pipelines, tmp_path) -> None:
    write_reference_images(tmp_path)
    with Gallery.open(tmp_path / "g") as gallery:
        gallery.add_many({name: np.eye(1, 4) for name in PALETTE})
        reembed(pipelines[0], gallery, found_in=find_references(tmp_path))
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.reference_counts() == dict.fromkeys(PALETTE, 2)


def test_changes_on_the_way_are_not_lost(tmp_path) -> None:
    with Gallery.open(tmp_path / "g", model="old") as gallery:
        gallery.add_many({"a": np.eye(1, 4), "b": np.eye(1, 4), "c": np.eye(1, 4)})
        work = Reembedding(gallery.store, "new")
        pending = work.pending()
        work.stage({"a": np.eye(1, 6), "b": np.eye(1, 6), "c": np.eye(1, 6)}, pending)
        gallery.add("b", np.eye(2, 4))
        gallery.remove("c")
        gallery.add("d", np.eye(1, 4))
        assert set(work.pending()) == {"b", "d"}
        with pytest.raises(GalleryError, match="2 products without new embeddings, such as 'b'"):
            work.finish(["d"][:0])
        work.stage({"b": np.eye(2, 6), "d": np.eye(1, 6)}, work.pending())
        Reembedding(gallery.store, "new").finish()  # another process may go on
    with Gallery.open(tmp_path / "g", model="new") as gallery:
        assert gallery.reference_counts() == {"a": 1, "b": 2, "d": 1}
        assert gallery.dimension == 6


def test_stage_of_another_model_is_dropped(tmp_path) -> None:
    with Gallery.open(tmp_path / "g", model="old") as gallery:
        gallery.add("a", np.eye(1, 4))
        first = Reembedding(gallery.store, "one")
        first.stage({"a": np.eye(1, 4)}, first.pending())
        assert set(Reembedding(gallery.store, "two").pending()) == {"a"}


def test_small_copy_keeps_what_is_needed(tmp_path) -> None:
    photo = np.repeat(np.repeat(reference_photo("red"), 12, axis=0), 12, axis=1)
    (tmp_path / "copy.jpg").write_bytes(small_copy(photo))
    copy = read_rgb(tmp_path / "copy.jpg")
    assert max(copy.shape) == 512
    assert small_copy(photo[:40, :30]) != b""
