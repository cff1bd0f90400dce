"""How often wrong labels make wrong pairs: expected under uniform errors, and counted (section 4.3 and 5.4)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mca_perception.errors import ContrastiveError

# Mean over common public data sets, given with the method.
TYPICAL_LABEL_ERROR_RATE = 0.033


class PairErrors(NamedTuple):
    """Wrong pairs among those that the assigned labels call positive or negative.

    Attributes:
        false_positive: share of wrong ones among pairs with equal assigned labels.
        false_negative: share of wrong ones among pairs with different assigned labels.
    """

    false_positive: float
    false_negative: float

    @property
    def false_positive_share(self) -> float:
        """Of both *rates*, the positives' part; by *number* of pairs false positives are about half."""
        total = self.false_positive + self.false_negative
        return self.false_positive / total if total else 0.0


def expected_pair_errors(label_error_rate: float = TYPICAL_LABEL_ERROR_RATE, *, n_classes: int) -> PairErrors:
    """Exact rates when every wrong label is drawn uniformly from the other classes (section 4.3).

    They are ``eps_pos`` and ``eps_neg`` of :func:`~mca_perception.contrastive.scl_rhe`.

    Args:
        label_error_rate: share of wrong labels, 0 to 1.
        n_classes: at least 2.

    Raises:
        ContrastiveError: an argument is out of range.
    """
    if not 0 <= label_error_rate <= 1 or n_classes < 2:
        raise ContrastiveError(
            f"label error rate {label_error_rate} with {n_classes} classes; pass a rate in 0..1 and at least 2 classes"
        )
    others = n_classes - 1
    false_positive = 2 * label_error_rate - label_error_rate**2 - label_error_rate**2 / others
    return PairErrors(false_positive, false_positive / others)


def measured_pair_errors(latent: ArrayLike, assigned: ArrayLike) -> PairErrors:
    """Count wrong pairs over all pairs of different items; rates of absent kinds of pairs are 0.

    Args:
        latent: ``[N]`` integer true classes.
        assigned: ``[N]`` integer labels.

    Raises:
        ContrastiveError: the two do not match.
    """
    true, given = np.asarray(latent), np.asarray(assigned)
    if true.ndim != 1 or true.shape != given.shape or not len(true):
        raise ContrastiveError(
            f"labels of shapes {true.shape} and {given.shape}; pass two of [N], N at least 1"
        )
    same_given, same_true = _pairs(given), _pairs(true)
    both = _pairs(np.unique(np.stack([true, given]), axis=1, return_inverse=True)[1].reshape(-1))
    different_given = len(true) * (len(true) - 1) // 2 - same_given
    return PairErrors(
        (same_given - both) / same_given if same_given else 0.0,
        (same_true - both) / different_given if different_given else 0.0,
    )


def _pairs(groups: NDArray[np.integer]) -> int:
    """Unordered pairs within groups."""
    sizes = np.unique(groups, return_counts=True)[1].astype(np.int64)
    return int((sizes * (sizes - 1) // 2).sum())
