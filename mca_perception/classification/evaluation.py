"""How well embeddings tell classes apart: nearest neighbours and few-shot episodes, in NumPy.

Specification of the contrastive methods, section 3.5: episodes are 5-way with 15 queries per class, judged by the
cosine to the class means of the support, and reported as a mean with its 95 % interval over episodes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mca_perception.errors import DatasetError

__all__ = ["FewShot", "few_shot", "knn_probabilities", "nearest_neighbours", "unit"]

Floats = NDArray[np.float32]
BLOCK_ROWS = 1024
TEMPERATURE = 0.1


class FewShot(NamedTuple):
    """Accuracy over episodes.

    Attributes:
        accuracy: mean over episodes.
        interval: half width of the 95 % interval of that mean, ``1.96 * deviation / sqrt(episodes)``.
        classes: how many classes had enough items to be drawn.
    """

    accuracy: float
    interval: float
    classes: int


def unit(rows: ArrayLike) -> Floats:
    """Rows ``[N, D]`` scaled to length 1, float32; rows of zeros stay."""
    values = np.asarray(rows, np.float32)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12), np.float32)


def nearest_neighbours(
    queries: ArrayLike, rows: ArrayLike, k: int, own: ArrayLike | None = None
) -> tuple[NDArray[np.int64], Floats]:
    """The ``k`` rows of largest cosine to every query, nearest first.

    Args:
        queries: ``[Q, D]``.
        rows: ``[N, D]``.
        k: how many, at most as many as there are.
        own: ``[Q]`` index of the query among the rows, which is left out; None where queries are no rows.

    Returns:
        Indices ``[Q, k]`` and cosines ``[Q, k]``.

    Raises:
        DatasetError: there are fewer than ``k`` rows to compare with.
    """
    a, b = unit(queries), unit(rows)
    available = len(b) - (own is not None)
    if not 1 <= k <= available:
        raise DatasetError(f"{k} neighbours wanted among {available} items; lower the number of neighbours")
    index, cosine = np.empty((len(a), k), np.int64), np.empty((len(a), k), np.float32)
    for start in range(0, len(a), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        similar = a[part] @ b.T
        if own is not None:
            similar[np.arange(len(similar)), np.asarray(own)[part]] = -np.inf
        found = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(similar, found, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        index[part] = np.take_along_axis(found, order, 1)
        cosine[part] = np.take_along_axis(values, order, 1)
    return index, cosine


def knn_probabilities(
    neighbours: NDArray[np.int64],
    cosines: Floats,
    labels: NDArray[np.integer],
    classes: int,
    temperature: float = TEMPERATURE,
) -> Floats:
    """Votes of the neighbours for their classes, weighted by ``exp(cosine / temperature)``; rows add up to 1.

    Args:
        neighbours: ``[Q, k]`` indices into ``labels``.
        cosines: ``[Q, k]``.
        labels: ``[N]`` class ids from 0.
        classes: number of classes.
        temperature: of the weights.
    """
    weights = np.exp((cosines - cosines[:, :1]) / temperature)
    cells = np.arange(len(neighbours))[:, None] * classes + labels[neighbours]
    votes = np.bincount(cells.ravel(), weights.ravel(), len(neighbours) * classes)
    votes = votes.reshape(len(neighbours), classes)
    return np.asarray(votes / votes.sum(1, keepdims=True), np.float32)


def few_shot(
    rows: ArrayLike,
    labels: ArrayLike,
    shots: int,
    *,
    ways: int = 5,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
) -> FewShot:
    """Accuracy of the nearest class mean (cosine) over random episodes.

    A class takes part if it has ``shots + 1`` items; where it has fewer than ``shots + queries``, the rest are its
    queries, and every class of an episode weighs the same.

    Args:
        rows: ``[N, D]`` embeddings.
        labels: ``[N]`` classes.
        shots: labelled items per class and episode.
        ways: classes per episode.
        queries: items to classify per class and episode, at most.
        episodes: how many.
        seed: of the draws.

    Raises:
        DatasetError: fewer than ``ways`` classes are large enough.
    """
    embeddings, classes = unit(rows), np.asarray(labels)
    groups = [np.flatnonzero(classes == name) for name in np.unique(classes)]
    groups = [group for group in groups if len(group) > shots]
    if len(groups) < ways:
        raise DatasetError(
            f"{len(groups)} classes have more than {shots} images, {ways}-way {shots}-shot episodes need {ways}; "
            "add images or ask for fewer shots"
        )
    rng = np.random.default_rng(seed)
    scores = np.empty(episodes)
    for number in range(episodes):
        drawn = [rng.permutation(groups[i])[: shots + queries] for i in rng.permutation(len(groups))[:ways]]
        means = unit(np.stack([embeddings[items[:shots]].mean(0) for items in drawn]))
        hits = [
            ((embeddings[items[shots:]] @ means.T).argmax(1) == way).mean() for way, items in enumerate(drawn)
        ]
        scores[number] = np.mean(hits)
    return FewShot(float(scores.mean()), float(1.96 * scores.std(ddof=1) / math.sqrt(episodes)), len(groups))
