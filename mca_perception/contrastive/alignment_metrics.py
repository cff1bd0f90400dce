"""How alike two sets of embeddings of the same items are, e.g. of images and texts, or of two models.

Specification of the framework, section 8.2. NumPy, float64, without a matrix of all pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mca_perception.contrastive.embedding_metrics import (
    BLOCK_ELEMENTS,
    Array,
    checked_rows,
    unit_pairs,
    unit_rows,
)
from mca_perception.errors import ContrastiveError


def modality_gap(first: ArrayLike, second: ArrayLike) -> float:
    """Distance between the mean unit rows of two sets in one space; 0 is no gap.

    Args:
        first: ``[N, D]``.
        second: ``[M, D]``.

    Raises:
        ContrastiveError: shapes do not fit or values are not finite; so for all measures here.
    """
    a, b = unit_rows(first, "first embeddings"), unit_rows(second, "second embeddings")
    if a.shape[1] != b.shape[1]:
        raise ContrastiveError(f"embeddings of {a.shape[1]} and {b.shape[1]} dimensions share no space")
    return float(np.linalg.norm(a.mean(0) - b.mean(0)))


def linear_cka(first: ArrayLike, second: ArrayLike, *, unbiased: bool = False) -> float:
    """Linear centred kernel alignment of two sets of features of the same items, of any widths.

    Plain: ``|Y'X|^2 / (|X'X| |Y'Y|)`` with centred columns, in 0..1 and too high unless N is much above the widths.
    Unbiased: from the unbiased estimator of HSIC, around 0 for unrelated features, possibly below.

    Args:
        first: ``[N, P]``, used as they are (no normalisation).
        second: ``[N, Q]``.
        unbiased: use the unbiased estimator, which needs N of at least 4.
    """
    x, y = checked_rows(first, "first features"), checked_rows(second, "second features")
    least = 4 if unbiased else 2
    if len(x) != len(y) or len(x) < least:
        raise ContrastiveError(
            f"features of {len(x)} and {len(y)} items; pass the same items, at least {least}"
        )
    x, y = x - x.mean(0), y - y.mean(0)
    measure = _unbiased_hsic if unbiased else _hsic
    scale = measure(x, x) * measure(y, y)
    if not scale > 0:
        raise ContrastiveError(
            "one set of features does not vary between items; the alignment is not defined"
        )
    return float(measure(x, y) / np.sqrt(scale))


def mutual_knn_overlap(first: ArrayLike, second: ArrayLike, k: int = 10) -> float:
    """Mean share of the k nearest neighbours (cosine, the item itself left out) that two embeddings agree on.

    Unrelated embeddings share about ``k / (N - 1)``. Between equally near rows the choice is arbitrary.

    Args:
        first: ``[N, P]``.
        second: ``[N, Q]``, of the same items.
        k: 1 to N - 1.
    """
    a, b = unit_rows(first, "first embeddings"), unit_rows(second, "second embeddings")
    if len(a) != len(b) or not 1 <= k < len(a):
        raise ContrastiveError(
            f"{k} neighbours among {len(a)} and {len(b)} items; pass the same items, more than k"
        )
    shared = 0
    step = max(1, BLOCK_ELEMENTS // len(a))
    for start in range(0, len(a), step):
        members = [_neighbours(rows, slice(start, start + step), k) for rows in (a, b)]
        shared += int((members[0] & members[1]).sum())
    return shared / (k * len(a))


def matching_similarity(first: ArrayLike, second: ArrayLike) -> Array:
    """Cosines of matching rows ``[N]``, for their mean and for a bootstrap interval over items.

    Args:
        first: ``[N, D]``.
        second: ``[N, D]``.
    """
    a, b = unit_pairs(first, second)
    cosines: Array = (a * b).sum(1)
    return cosines


def _hsic(x: Array, y: Array) -> float:
    return float(np.square(y.T @ x).sum())


def _unbiased_hsic(x: Array, y: Array) -> float:
    """``HSIC1`` of the linear kernels from their factors: K = XX' and L = YY' with zeroed diagonals, never built."""
    n = len(x)
    of_x, of_y = np.square(x).sum(1), np.square(y).sum(1)
    k_sums, l_sums = x @ x.sum(0) - of_x, y @ y.sum(0) - of_y
    trace = np.square(y.T @ x).sum() - of_x @ of_y
    constant = k_sums.sum() * l_sums.sum() / ((n - 1) * (n - 2))
    return float((trace + constant - 2 / (n - 2) * (k_sums @ l_sums)) / (n * (n - 3)))


def _neighbours(rows: Array, part: slice, k: int) -> NDArray[np.bool_]:
    """Membership ``[len(part), N]`` of the k rows nearest to each row of a part."""
    cosines = rows[part] @ rows.T
    own = np.arange(len(cosines))
    cosines[own, part.start + own] = -np.inf
    members = np.zeros(cosines.shape, bool)
    np.put_along_axis(members, np.argpartition(-cosines, k - 1, axis=1)[:, :k], True, axis=1)
    return members
