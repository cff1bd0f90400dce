"""Wrong labels put in on purpose, with a record of what was changed.

Specification of the contrastive methods, section 10: look-alike errors, as people make them, and symmetric ones.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mca_perception.classification.evaluation import unit
from mca_perception.errors import DatasetError

__all__ = ["InjectedErrors", "inject_label_errors"]

Kind = Literal["symmetric", "look-alike"]
Labels = NDArray[np.int64]


class InjectedErrors(NamedTuple):
    """Labels with errors.

    Attributes:
        labels: ``[N]`` int64, with errors.
        changed: ``[N]`` bool, where they differ from what was given.
    """

    labels: Labels
    changed: NDArray[np.bool_]


def inject_label_errors(
    labels: ArrayLike, rate: float, kind: Kind, *, seed: int = 0, embeddings: ArrayLike | None = None
) -> InjectedErrors:
    """Change ``round(rate * N)`` labels.

    ``symmetric``: items drawn at random get another class at random. ``look-alike``: the items that lie nearest to the
    centre of another class, compared with their own, get that class. This is the hardest case: it changes exactly those
    labels that the embedding doubts anyway.

    Args:
        labels: ``[N]`` class ids from 0.
        rate: share of labels to change, 0 to 1.
        kind: which errors.
        seed: of the draws of ``symmetric``; ``look-alike`` draws nothing.
        embeddings: ``[N, D]`` for ``look-alike``, of a model that was not trained on the changed labels.

    Raises:
        DatasetError: the rate is out of range, there is one class, or embeddings are missing.
    """
    given = np.asarray(labels, np.int64)
    classes = int(given.max(initial=-1)) + 1
    if not 0 <= rate <= 1 or classes < 2:
        raise DatasetError(f"error rate {rate} with {classes} classes; give 0 to 1 and at least 2 classes")
    count = round(rate * len(given))
    wrong = given.copy()
    if kind == "symmetric":
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(len(given))[:count]
        wrong[chosen] = (given[chosen] + rng.integers(1, classes, count)) % classes
    elif embeddings is None:
        raise DatasetError("look-alike errors need embeddings; pass those of a model trained elsewhere")
    else:
        nearest, margin = _nearest_other_class(unit(embeddings), given, classes)
        chosen = np.argsort(margin, kind="stable")[:count]
        wrong[chosen] = nearest[chosen]
    return InjectedErrors(wrong, wrong != given)


def _nearest_other_class(
    rows: NDArray[np.float32], labels: Labels, classes: int
) -> tuple[Labels, NDArray[np.float32]]:
    """The other class with the nearest centre, and how much farther it is than the own one (cosines)."""
    sums = np.zeros((classes, rows.shape[1]), np.float32)
    np.add.at(sums, labels, rows)
    cosines = rows @ unit(sums).T
    everyone = np.arange(len(rows))
    own = cosines[everyone, labels]
    cosines[everyone, labels] = -np.inf
    nearest = cosines.argmax(1)
    return nearest, own - cosines[everyone, nearest]
