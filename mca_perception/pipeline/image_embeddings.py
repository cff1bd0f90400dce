"""Whole images as a bundle sees them: their embeddings, and statistics of the backbone's tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.images import read_rgb
from mca_perception.errors import InvalidImageError
from mca_perception.pipeline.embedding import MAX_CROPS_AT_ONCE, Embedder

__all__ = ["ImageEmbeddings", "embed_images"]

Floats = NDArray[np.float32]


class ImageEmbeddings(NamedTuple):
    """Rows of the images that could be read.

    Attributes:
        usable: int64 ``[N]``, positions of those images among the paths given.
        embeddings: ``[N, E]``, L2-normalised.
        statistics: ``[N, 2 D]``, mean and standard deviation of the patch tokens.
        skipped: images left out, by reason.
    """

    usable: NDArray[np.int64]
    embeddings: Floats
    statistics: Floats
    skipped: Counter[str]


def embed_images(
    embedder: Embedder,
    paths: Sequence[Path],
    progress: Callable[[Sequence[Any], str], Iterable[Any]] = lambda items, _: items,
) -> ImageEmbeddings:
    """Embed images, each as a whole; what cannot be read is left out and counted.

    Args:
        embedder: of an open bundle.
        paths: image files.
        progress: wraps the loop over chunks.

    Raises:
        BundleError: the bundle does not identify.
        InvalidImageError: no image can be read.
    """
    usable: list[int] = []
    embeddings: list[Floats] = []
    statistics: list[Floats] = []
    skipped: Counter[str] = Counter()
    for start in progress(range(0, len(paths), MAX_CROPS_AT_ONCE), "embedding images"):
        crops = []
        for position in range(start, min(start + MAX_CROPS_AT_ONCE, len(paths))):
            try:
                crops.append(embedder.crop(read_rgb(paths[position], oriented=True)))
            except InvalidImageError:
                skipped["image that cannot be read"] += 1
            else:
                usable.append(position)
        features = list(embedder.crop_features(crops))
        embeddings.append(embedder.embed_features(features))
        for part in features:
            patches = part.features[:, 1:].astype(np.float32)
            statistics.append(np.concatenate([patches.mean(1), patches.std(1)], axis=1))
    if not usable:
        raise InvalidImageError(f"none of {len(paths)} images can be read; check the files")
    return ImageEmbeddings(
        np.array(usable, np.int64), np.concatenate(embeddings), np.concatenate(statistics), skipped
    )
