"""From folders of reference images to embeddings and galleries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.images import read_rgb
from mca_perception.errors import InvalidImageError
from mca_perception.identification.gallery import MAX_ID_LENGTH, MAX_REFERENCES_PER_PRODUCT, Gallery
from mca_perception.pipeline.pipeline import MAX_CROPS_AT_ONCE, PerceptionPipeline

__all__ = ["ImportCounts", "Progress", "embed_products", "import_references", "no_progress"]

Progress = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wraps a sequence to show how far a loop over it is."""


@dataclass
class ImportCounts:
    """What an import did: products and images that are in, and what was skipped by reason."""

    products: int = 0
    images: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def no_progress(items: Sequence[Any], _: str) -> Iterable[Any]:
    """Show nothing."""
    return items


def embed_products(
    pipeline: PerceptionPipeline,
    references: Mapping[str, Sequence[Path]],
    skipped: Counter[str],
    *,
    progress: Progress = no_progress,
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Embed the reference images of products, some products at a time.

    Args:
        pipeline: a pipeline whose bundle identifies.
        references: image files by product.
        skipped: counts images and products left out, by reason.
        progress: shows how far it is.

    Yields:
        Embeddings float32 ``[R, E]`` of the next products.

    Raises:
        BundleError: the bundle does not identify.
    """
    batch: dict[str, list[NDArray[np.uint8]]] = {}
    for product in progress(list(references), "products"):
        paths = references[product]
        if len(paths) > MAX_REFERENCES_PER_PRODUCT:
            skipped["image above the limit per product"] += len(paths) - MAX_REFERENCES_PER_PRODUCT
        crops = []
        for path in paths[:MAX_REFERENCES_PER_PRODUCT]:
            try:
                crops.append(pipeline.crop_reference(read_rgb(path, oriented=True)))
            except InvalidImageError:
                skipped["image not readable"] += 1
        if crops:
            batch[product] = crops
        else:
            skipped["product without readable image"] += 1
        if sum(map(len, batch.values())) >= MAX_CROPS_AT_ONCE:
            yield _embed(pipeline, batch)
            batch = {}
    if batch:
        yield _embed(pipeline, batch)


def import_references(
    pipeline: PerceptionPipeline,
    gallery: Gallery,
    references: Mapping[str, Sequence[Path]],
    *,
    progress: Progress = no_progress,
) -> ImportCounts:
    """Add products to a gallery, or replace them; what is in after an interruption stays in.

    Args:
        pipeline: makes the embeddings; its bundle must be the gallery's model.
        gallery: receives them.
        references: image files by product.
        progress: shows how far it is.

    Raises:
        BundleError: the bundle does not identify.
        GalleryError: the gallery holds embeddings of another width.
    """
    counts = ImportCounts()
    usable = {}
    for product, paths in references.items():
        if len(product) > MAX_ID_LENGTH or not product.strip():
            counts.skipped["product id not valid"] += 1
        else:
            usable[product] = paths
    for products in embed_products(pipeline, usable, counts.skipped, progress=progress):
        gallery.add_many(products)
        counts.products += len(products)
        counts.images += sum(map(len, products.values()))
    return counts


def _embed(
    pipeline: PerceptionPipeline, batch: Mapping[str, list[NDArray[np.uint8]]]
) -> dict[str, NDArray[np.float32]]:
    embeddings = pipeline.embed_crops([crop for crops in batch.values() for crop in crops])
    ends = np.cumsum([len(crops) for crops in batch.values()])
    return dict(zip(batch, np.split(embeddings, ends[:-1]), strict=True))
