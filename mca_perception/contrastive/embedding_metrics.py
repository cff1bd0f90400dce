"""Quality of the embeddings of one model, in NumPy and in memory that does not grow with the square of their number.

Specification of the contrastive methods, section 5. All work in float64 on rows ``[N, D]`` of any norm, a block of rows
at a time. Time grows with N squared where pairs are compared, so sample tens of thousands of rows at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mca_perception.errors import ContrastiveError

Array = NDArray[np.float64]

BINS = 100
BLOCK_ELEMENTS = 2**22
# Bins of the curve behind the AUROC, which is exact but for pairs that share one: each is 3e-5 wide.
_RANK_BINS = 2**16


class CosineDistributions(NamedTuple):
    """Cosines of pairs that belong together and of pairs that do not.

    Attributes:
        edges: ``[bins + 1]`` from -1 to 1.
        positive_counts: ``[bins]`` pairs that belong together.
        negative_counts: ``[bins]`` the others.
        mean_positive: mean cosine of the former.
        mean_negative: mean cosine of the latter.
        overlap: ``sum min(p+, p-)`` over the bins' shares: 0 if the two are separate, 1 if they are alike.
        auroc: probability that a positive pair is closer than a negative one.
    """

    edges: Array
    positive_counts: NDArray[np.int64]
    negative_counts: NDArray[np.int64]
    mean_positive: float
    mean_negative: float
    overlap: float
    auroc: float

    @property
    def gap(self) -> float:
        """``mean_positive - mean_negative``: the similarity margin."""
        return self.mean_positive - self.mean_negative


class ClassMargin(NamedTuple):
    """How close rows are to the mean direction of their class; cosines, averaged over rows.

    Attributes:
        intra: to the row's own class, whose mean includes the row.
        inter: to the nearest other class.
        margin: ``intra - inter``.
        negative_margin: share of rows that are nearer to another class.
    """

    intra: float
    inter: float
    margin: float
    negative_margin: float


def class_cosines(embeddings: ArrayLike, labels: ArrayLike, bins: int = BINS) -> CosineDistributions:
    """Cosines of all pairs of rows, of one class against of different classes (section 5.1).

    Args:
        embeddings: ``[N, D]``.
        labels: ``[N]``.
        bins: of the histograms and the overlap.

    Raises:
        ContrastiveError: shapes do not fit, values are not finite, or one of the two kinds of pairs is absent.
    """
    rows, classes = unit_rows(embeddings, "embeddings"), checked_labels(labels, embeddings)
    collector = _PairCosines(bins)
    for part in _parts(len(rows), len(rows)):
        later = np.arange(len(rows)) > np.arange(part.start, part.stop)[:, None]
        collector.add(rows[part] @ rows.T, classes[part, None] == classes, later)
    return collector.result()


def paired_cosines(first: ArrayLike, second: ArrayLike, bins: int = BINS) -> CosineDistributions:
    """Cosines of matching rows of two sets against all other pairs between them, e.g. images and their texts.

    Args:
        first: ``[N, D]``.
        second: ``[N, D]``, row i belonging to row i.
        bins: of the histograms and the overlap.

    Raises:
        ContrastiveError: as in :func:`class_cosines`.
    """
    a, b = unit_pairs(first, second)
    collector = _PairCosines(bins)
    for part in _parts(len(a), len(b)):
        matching = np.arange(len(b)) == np.arange(part.start, part.stop)[:, None]
        collector.add(a[part] @ b.T, matching, np.ones_like(matching))
    return collector.result()


def isotropy(embeddings: ArrayLike, *, normalise: bool = True) -> float:
    """``min_c Z(c) / max_c Z(c)``, ``Z(c) = sum_v exp(c.v)``, over both signs of the eigenvectors of ``V^T V``.

    Eq. 5.5 with its ratio turned over, as its values demand (section 5.3). 1 is isotropic. Without normalisation it
    mostly measures the norms; report both. Rows are not centred.

    Args:
        embeddings: ``[N, D]``.
        normalise: scale rows to unit length first.
    """
    rows = unit_rows(embeddings, "embeddings") if normalise else checked_rows(embeddings, "embeddings")
    directions = np.linalg.eigh(rows.T @ rows)[1]
    log_sums = np.full(2 * rows.shape[1], -np.inf)
    for part in _parts(len(rows), len(log_sums)):
        projected = rows[part] @ directions
        log_sums = np.logaddexp(log_sums, _log_sum_exp(np.hstack([projected, -projected])))
    return float(np.exp(log_sums.min() - log_sums.max()))


def alignment(first: ArrayLike, second: ArrayLike) -> float:
    """Mean squared distance of matching unit rows; 0 is best.

    Args:
        first: ``[N, D]``.
        second: ``[N, D]``, row i belonging to row i.
    """
    a, b = unit_pairs(first, second)
    return float(np.square(a - b).sum(1).mean())


def uniformity(embeddings: ArrayLike) -> float:
    """``log mean exp(-2 d^2)`` over all pairs of unit rows; the lower, the more evenly they are spread.

    Args:
        embeddings: ``[N, D]``, N at least 2.
    """
    rows = unit_rows(embeddings, "embeddings")
    count = len(rows)
    if count < 2:
        raise ContrastiveError(f"uniformity compares pairs and got {count} row; pass at least 2")
    total = 0.0
    for part in _parts(count, count):
        own = np.arange(part.start, part.stop)
        kernel = np.exp(4 * (rows[part] @ rows.T) - 4)
        kernel[own - part.start, own] = 0
        total += kernel.sum()
    return float(np.log(total / (count * (count - 1))))


def class_margin(embeddings: ArrayLike, labels: ArrayLike) -> ClassMargin:
    """Cosine of every row to the mean direction of its own and of the nearest other class.

    Args:
        embeddings: ``[N, D]``.
        labels: ``[N]``, at least two classes.
    """
    rows, classes = unit_rows(embeddings, "embeddings"), checked_labels(labels, embeddings)
    names, own = np.unique(classes, return_inverse=True)
    if len(names) < 2:
        raise ContrastiveError("all rows have one label; a margin needs at least two classes")
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, own, rows)
    means = unit_rows(sums, "class means")
    margins = np.empty((len(rows), 2))
    for part in _parts(len(rows), len(names)):
        cosines = rows[part] @ means.T
        index = np.arange(len(cosines)), own[part]
        margins[part, 0] = cosines[index]
        cosines[index] = -np.inf
        margins[part, 1] = cosines.max(1)
    intra, inter = margins.mean(0)
    closer = (margins[:, 1] > margins[:, 0]).mean()
    return ClassMargin(float(intra), float(inter), float(intra - inter), float(closer))


def checked_rows(embeddings: ArrayLike, name: str) -> Array:
    """Float64 rows ``[N, D]``.

    Raises:
        ContrastiveError: not two-dimensional, empty, or not finite.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ContrastiveError(f"{name} have shape {rows.shape}; pass [N, D] with at least one row")
    if not np.isfinite(rows).all():
        raise ContrastiveError(f"{name} hold values that are not finite; leave those rows out")
    return rows


def unit_rows(embeddings: ArrayLike, name: str) -> Array:
    """Rows of unit length; a row of zeros stays.

    Raises:
        ContrastiveError: as in :func:`checked_rows`.
    """
    rows = checked_rows(embeddings, name)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def unit_pairs(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    """Unit rows of two sets of one shape.

    Raises:
        ContrastiveError: the shapes differ, or as in :func:`checked_rows`.
    """
    a, b = unit_rows(first, "first embeddings"), unit_rows(second, "second embeddings")
    if a.shape != b.shape:
        raise ContrastiveError(
            f"embeddings of shapes {a.shape} and {b.shape} are no pairs; pass two of [N, D]"
        )
    return a, b


def checked_labels(labels: ArrayLike, embeddings: ArrayLike) -> NDArray[np.generic]:
    """Labels ``[N]``.

    Raises:
        ContrastiveError: not one per row.
    """
    classes = np.asarray(labels)
    if classes.shape != (len(np.asarray(embeddings)),):
        raise ContrastiveError(f"labels have shape {classes.shape}; pass one per row")
    return classes


class _PairCosines:
    """Counts and sums of two kinds of pairs, block by block."""

    def __init__(self, bins: int) -> None:
        if not 1 <= bins <= _RANK_BINS:
            raise ContrastiveError(f"{bins} bins; pass 1 to {_RANK_BINS}")
        self.bins = bins
        self.counts = np.zeros((2, bins), np.int64)
        self.ranks = np.zeros((2, _RANK_BINS), np.int64)
        self.sums = np.zeros(2)

    def add(self, cosines: Array, positive: NDArray[np.bool_], used: NDArray[np.bool_]) -> None:
        """Take in the pairs of a block that are ``used``."""
        for kind, chosen in enumerate((used & positive, used & ~positive)):
            values = cosines[chosen].clip(-1, 1)
            self.counts[kind] += _histogram(values, self.bins)
            self.ranks[kind] += _histogram(values, _RANK_BINS)
            self.sums[kind] += values.sum()

    def result(self) -> CosineDistributions:
        """Figures over everything taken in."""
        pairs = self.counts.sum(1)
        if not pairs.all():
            raise ContrastiveError(
                f"{pairs[0]} pairs belong together and {pairs[1]} do not; pass rows that give at least one of each"
            )
        shares = self.counts / pairs[:, None]
        positive, negative = self.ranks / pairs[:, None]
        auroc = (positive * (negative.cumsum() - negative / 2)).sum()
        means = self.sums / pairs
        return CosineDistributions(
            np.linspace(-1, 1, self.bins + 1),
            self.counts[0],
            self.counts[1],
            float(means[0]),
            float(means[1]),
            float(np.minimum(*shares).sum()),
            float(auroc),
        )


def _histogram(cosines: Array, bins: int) -> NDArray[np.int64]:
    return np.histogram(cosines, bins, (-1, 1))[0].astype(np.int64)


def _log_sum_exp(values: Array) -> Array:
    """Over the rows of a block."""
    highest: Array = values.max(0)
    return highest + np.log(np.exp(values - highest).sum(0))


def _parts(rows: int, width: int) -> Iterator[slice]:
    """Slices of rows, each of about :data:`BLOCK_ELEMENTS` values."""
    step = max(1, BLOCK_ELEMENTS // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))
