"""From reference images to embeddings and galleries."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.images import decode_rgb, read_rgb
from mca_perception.errors import GalleryError, InvalidImageError
from mca_perception.identification.crops import MAX_REFERENCE_SIDE
from mca_perception.identification.gallery import MAX_ID_LENGTH, MAX_REFERENCES_PER_PRODUCT, Gallery
from mca_perception.identification.gallery_reembed import Reembedding
from mca_perception.pipeline.embedding import MAX_CROPS_AT_ONCE, Embedder

__all__ = [
    "ImportCounts",
    "Progress",
    "Source",
    "embed_products",
    "import_references",
    "no_progress",
    "reembed",
    "small_copy",
]

Progress = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wraps a sequence to show how far a loop over it is."""

Source = str | os.PathLike[str] | bytes
"""A reference image: its file, or the encoded image."""

_PRODUCTS_AT_ONCE = 4096


@dataclass
class ImportCounts:
    """What an import did: products and images that are in, and what was skipped by reason."""

    products: int = 0
    images: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


class _Embedded(NamedTuple):
    """Embeddings of a product and the ``R`` images they came from: float32 ``[R, E]``, or ``[1, E]`` if fused."""

    embeddings: NDArray[np.float32]
    sources: list[Source]

    @property
    def one_per_image(self) -> NDArray[np.float32]:
        """``[R, E]``: a gallery keeps the images, each with an embedding."""
        return np.broadcast_to(self.embeddings, (len(self.sources), self.embeddings.shape[1]))


def no_progress(items: Sequence[Any], _: str) -> Iterable[Any]:
    """Show nothing."""
    return items


def embed_products(
    pipeline: Embedder,
    references: Mapping[str, Sequence[Source]],
    skipped: Counter[str],
    *,
    progress: Progress = no_progress,
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Embed the reference images of products, some products at a time.

    Args:
        pipeline: a pipeline whose bundle identifies.
        references: images by product.
        skipped: counts images and products left out, by reason.
        progress: shows how far it is.

    Yields:
        Embeddings float32 ``[R, E]`` of the next products, ``[1, E]`` where the bundle fuses references.

    Raises:
        BundleError: the bundle does not identify.
    """
    for products in _embed_batches(pipeline, references, skipped, progress):
        yield {product: embedded.embeddings for product, embedded in products.items()}


def import_references(
    pipeline: Embedder,
    gallery: Gallery,
    references: Mapping[str, Sequence[Path]],
    *,
    keep_copies: bool = False,
    progress: Progress = no_progress,
) -> ImportCounts:
    """Add products to a gallery, or replace them; what is in after an interruption stays in.

    Args:
        pipeline: makes the embeddings; its bundle must be the gallery's model.
        gallery: receives them, with the absolute paths of the images.
        references: image files by product.
        keep_copies: put small copies of the images into the gallery instead of their paths.
        progress: shows how far it is.

    Raises:
        BundleError: the bundle does not identify.
        GalleryError: the gallery holds embeddings of another width, or cannot be written.
    """
    counts = ImportCounts()
    usable = {}
    for product, paths in references.items():
        if len(product) > MAX_ID_LENGTH or not product.strip():
            counts.skipped["product id not valid"] += 1
        else:
            usable[product] = paths
    keep = _kept_copy if keep_copies else _kept_path
    for products in _embed_batches(pipeline, usable, counts.skipped, progress):
        gallery.add_many(
            {product: embedded.one_per_image for product, embedded in products.items()},
            {
                product: [keep(source) for source in embedded.sources]
                for product, embedded in products.items()
            },
        )
        counts.products += len(products)
        counts.images += sum(len(embedded.sources) for embedded in products.values())
    return counts


def reembed(
    pipeline: Embedder,
    gallery: Gallery,
    *,
    found_in: Mapping[str, Sequence[Path]] | None = None,
    allow_missing: bool = False,
    progress: Progress = no_progress,
) -> ImportCounts:
    """Embed all products of a gallery again, for the pipeline's model; the old embeddings serve until the end.

    An interrupted call is continued by the next one for the same model.

    Args:
        pipeline: makes the embeddings.
        gallery: opened without a model, or with its present one.
        found_in: image files by product that take the place of those the gallery knows.
        allow_missing: remove products without a readable image instead of refusing.
        progress: shows how far it is.

    Returns:
        What was embedded; ``skipped`` counts images and products left out.

    Raises:
        BundleError: the bundle does not identify.
        GalleryError: products have no readable image, and ``allow_missing`` is off; nothing has changed then.
    """
    found_in = found_in or {}
    counts = ImportCounts()
    work = Reembedding(gallery.store, pipeline.bundle.embedding_fingerprint)
    tried: dict[str, int] = {}
    # Products that change meanwhile become pending again, hence the loop.
    while pending := {product: g for product, g in work.pending().items() if tried.get(product) != g}:
        tried |= pending
        names = list(pending)
        for start in range(0, len(names), _PRODUCTS_AT_ONCE):
            known = gallery.images(names[start : start + _PRODUCTS_AT_ONCE])
            sources: dict[str, Sequence[Source]] = {p: found_in.get(p) or list(known[p]) for p in known}
            for products in _embed_batches(pipeline, sources, counts.skipped, progress):
                work.stage({p: embedded.one_per_image for p, embedded in products.items()}, pending)
                counts.products += len(products)
                counts.images += sum(len(embedded.sources) for embedded in products.values())
    missing = set(work.pending())
    if missing and not allow_missing:
        raise GalleryError(
            f"gallery {gallery.path} has {len(missing)} products without a readable image, such as "
            f"{min(missing)!r}; name the folder or list with their images, or allow that they are removed"
        )
    work.finish(missing)
    return counts


def small_copy(image: NDArray[np.uint8]) -> bytes:
    """Encode a reference image ``[H, W, 3]`` no larger than embedding needs: 512 pixels, JPEG."""
    scale = MAX_REFERENCE_SIDE / max(image.shape[:2])
    if scale < 1:
        image = np.asarray(
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
        )
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    return encoded.tobytes()


def _kept_path(source: Source) -> str | bytes:
    return source if isinstance(source, bytes) else str(Path(source).resolve())


def _kept_copy(source: Source) -> str | bytes:
    return source if isinstance(source, bytes) else small_copy(_read(source))


def _read(source: Source) -> NDArray[np.uint8]:
    if isinstance(source, bytes):
        return decode_rgb(source, "an image kept in the gallery")
    return read_rgb(source, oriented=True)


def _embed_batches(
    pipeline: Embedder,
    references: Mapping[str, Sequence[Source]],
    skipped: Counter[str],
    progress: Progress,
) -> Iterator[dict[str, _Embedded]]:
    """Embed products in batches of about ``MAX_CROPS_AT_ONCE`` images."""
    batch: dict[str, tuple[list[NDArray[np.uint8]], list[Source]]] = {}
    for product in progress(list(references), "products"):
        sources = references[product]
        if len(sources) > MAX_REFERENCES_PER_PRODUCT:
            skipped["image above the limit per product"] += len(sources) - MAX_REFERENCES_PER_PRODUCT
        crops, used = [], []
        for source in sources[:MAX_REFERENCES_PER_PRODUCT]:
            try:
                crops.append(pipeline.crop_reference(_read(source)))
                used.append(source)
            except InvalidImageError:
                skipped["image not readable"] += 1
        if crops:
            batch[product] = crops, used
        else:
            skipped["product without readable image"] += 1
        if sum(len(used) for _, used in batch.values()) >= MAX_CROPS_AT_ONCE:
            yield _embed(pipeline, batch)
            batch = {}
    if batch:
        yield _embed(pipeline, batch)


def _embed(
    pipeline: Embedder, batch: Mapping[str, tuple[list[NDArray[np.uint8]], list[Source]]]
) -> dict[str, _Embedded]:
    embeddings = pipeline.embed_crops(
        [crop for crops, _ in batch.values() for crop in crops], references=True
    )
    ends = np.cumsum([len(crops) for crops, _ in batch.values()])
    parts = np.split(embeddings, ends[:-1])
    if pipeline.fuses_references:
        parts = [pipeline.fuse_references(rows) for rows in parts]
    return {
        product: _Embedded(rows, used)
        for (product, (_, used)), rows in zip(batch.items(), parts, strict=True)
    }
