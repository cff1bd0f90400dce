"""What two runtimes made of the edge head, compared candidate by candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SAME_SCORE = 1e-3
_SAME_MASK = 0.05


def largest_candidate_difference(
    expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]], *, ties: float = 0.0
) -> float:
    """Largest difference of score and mask probabilities between the candidates of two runtimes.

    Candidates are the same one when they have the label in common, scores within 0.001 and mask probabilities within
    0.05 everywhere; their order does not matter, since rounding decides between equal scores.

    Args:
        expected: ``scores [N, K]`` float32, ``labels [N, K]`` int64, ``mask_logits [N, K, h, w]`` float32.
        found: the other runtime's, of the same shapes.
        ties: share of the candidates that need not agree: rounding also decides who is the last among the ``K`` best,
            whether a mask of one uncertain cell counts as empty, and whether a cell at 0.5 counts to the mask that
            the score is a mean over.

    Returns:
        The difference among the others; infinite when the two do not have the same candidates.
    """
    differences = []
    masks, others = _probabilities(expected["mask_logits"]), _probabilities(found["mask_logits"])
    for image in range(len(masks)):
        free = np.ones(masks.shape[1], np.bool_)
        for score, label, mask in zip(
            expected["scores"][image], expected["labels"][image], masks[image], strict=True
        ):
            scores = np.abs(found["scores"][image] - score)
            same = np.flatnonzero(free & (found["labels"][image] == label) & (scores <= _SAME_SCORE))
            gaps = np.abs(others[image][same] - mask).max(axis=1)
            if not len(gaps) or not gaps.min() <= _SAME_MASK:  # NaN is no twin either
                differences.append(float("inf"))
                continue
            twin = same[gaps.argmin()]
            free[twin] = False
            differences.append(float(max(scores[twin], gaps.min())))
    compared = sorted(differences)[: len(differences) - int(ties * len(differences))]
    return max(compared, default=0.0)


def _probabilities(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Of masks ``[N, K, h, w]``, as ``[N, K, h * w]``."""
    flat: NDArray[np.float32] = 1 / (1 + np.exp(-logits.reshape(*logits.shape[:2], -1).clip(-80, 80)))
    return flat
