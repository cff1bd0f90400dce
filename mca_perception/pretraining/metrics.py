"""Retrieval between images and captions, as it is reported on COCO and Flickr30k."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mca_perception.errors import DatasetError


def image_text_recall(
    similarity: NDArray[np.floating[Any]], image_of_caption: ArrayLike, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """Hit rates of caption -> image (IR) and image -> caption (TR) retrieval.

    A query counts as a hit when one of its relevant items is among the first ``k``; what the literature calls recall
    here (specification of the framework, section 8.1). An irrelevant item with the same score comes first, so that
    scores which tell nothing apart earn nothing.

    Args:
        similarity: ``[images, captions]`` scores, higher is more similar.
        image_of_caption: ``[captions]`` row of each caption's image; every image has at least one caption.
        ks: cut-offs.

    Returns:
        ``ir@k`` and ``tr@k`` for every cut-off, in 0 to 1.

    Raises:
        DatasetError: shapes or rows do not fit, an image has no caption, or a score is not a number.
    """
    scores = np.asarray(similarity)
    owner = np.asarray(image_of_caption)
    _check(scores, owner)
    images, captions = scores.shape
    relevant = owner[None, :] == np.arange(images)[:, None]
    own_score = scores[owner, np.arange(captions)]
    best_caption = np.where(relevant, scores, -np.inf).max(axis=1)
    image_rank = 1 + ((scores >= own_score[None, :]) & ~relevant).sum(axis=0)
    caption_rank = 1 + ((scores >= best_caption[:, None]) & ~relevant).sum(axis=1)
    ranks = {"ir": image_rank, "tr": caption_rank}
    return {f"{name}@{k}": float((rank <= k).mean()) for name, rank in ranks.items() for k in ks}


def _check(scores: NDArray[np.floating[Any]], owner: NDArray[Any]) -> None:
    if scores.ndim != 2 or owner.shape != scores.shape[1:] or not np.issubdtype(owner.dtype, np.integer):
        raise DatasetError(
            f"similarity must be [images, captions] with one image row per caption, got shapes {scores.shape} and "
            f"{owner.shape} of {owner.dtype}"
        )
    if owner.size and not 0 <= owner.min() <= owner.max() < scores.shape[0]:
        raise DatasetError(
            f"image_of_caption names rows {owner.min()} to {owner.max()} of {scores.shape[0]} images"
        )
    without = np.setdiff1d(np.arange(scores.shape[0]), owner)
    if without.size or not scores.size:
        raise DatasetError(f"{without.size} of {scores.shape[0]} images have no caption; leave them out")
    if np.isnan(scores).any():
        raise DatasetError("similarity holds values that are not numbers; check the embeddings")
