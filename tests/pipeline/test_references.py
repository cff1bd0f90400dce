from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mca_perception.datasets.armbench import find_references
from mca_perception.datasets.images import read_rgb
from mca_perception.errors import DatasetError
from mca_perception.identification.gallery import Gallery
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.references import embed_products, import_references
from tests.support.bundles import PALETTE, reference_photo, write_colour_bundle
from tests.support.datasets import write_image, write_reference_images


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> PerceptionPipeline:
    bundle = write_colour_bundle(tmp_path_factory.mktemp("models") / "colours")
    return PerceptionPipeline.from_bundle(bundle.path)


def test_batches_hold_whole_products_in_order(pipeline, tmp_path) -> None:
    write_reference_images(tmp_path, per_product=25)
    references = find_references(tmp_path)
    batches = list(embed_products(pipeline, references, Counter()))
    assert len(batches) == 2
    together = {product: rows for batch in batches for product, rows in batch.items()}
    assert list(together) == sorted(PALETTE)
    alone = pipeline.embed_references([read_rgb(path) for path in references["green"]])
    np.testing.assert_allclose(together["green"], alone, atol=1e-6)


def test_folders_and_single_images_are_products(tmp_path) -> None:
    write_reference_images(tmp_path)
    folder = tmp_path / "Reference_Images"
    write_image(folder / "B001.png", reference_photo("red"))
    write_image(folder / "red.png", reference_photo("red"))
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("no image")
    incomplete: Counter[str] = Counter()
    for root in (folder, tmp_path):
        references = find_references(root, incomplete)
        assert set(references) == {*PALETTE, "B001"}
        assert len(references["red"]) == 3
    assert incomplete == {"product with an empty reference folder": 2}
    with pytest.raises(DatasetError, match="is not a folder"):
        find_references(tmp_path / "nowhere")


def test_import_fills_a_gallery_and_counts_what_it_skips(pipeline, tmp_path: Path) -> None:
    write_reference_images(tmp_path)
    (tmp_path / "Reference_Images" / "red" / "1.png").write_bytes(b"damaged")
    for path in (tmp_path / "Reference_Images" / "blue").iterdir():
        path.write_bytes(b"damaged")
    references = find_references(tmp_path)
    references["x" * 300] = references["green"]
    with Gallery.open(tmp_path / "g", model=pipeline.bundle.embedding_fingerprint) as gallery:
        counts = import_references(pipeline, gallery, references)
        assert gallery.products() == sorted(set(PALETTE) - {"blue"})
        assert gallery.reference_counts()["red"] == 1
        again = import_references(pipeline, gallery, references)
        assert len(gallery) == again.products == counts.products == 5
    assert counts.images == 9
    assert counts.skipped == {
        "image not readable": 3,
        "product without readable image": 1,
        "product id not valid": 1,
    }
