"""Labels that the embedding contradicts: nearest neighbours in a space fitted to the other part of the same labels.

Images are compared by cosine after whitening with the scatter within classes, so that what varies inside a class does
not count. The whitening of an image comes from the images of other folds, and it never votes for itself: no label takes
part in its own judgement. Everything is in closed form, and a few wrong labels hardly move it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mca_perception.classification.evaluation import knn_probabilities, nearest_neighbours, unit
from mca_perception.errors import DatasetError

__all__ = ["DetectionCurve", "LabelAudit", "audit_labels", "check_count", "detection_curve"]

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

# Chosen on 5 % injected errors in the training photos of the Grocery Store data.
NEIGHBOURS = 10
SHRINKAGE = 0.1
FOLDS = 5
# Time grows with the square of their number.
MAX_IMAGES = 100_000
REVIEWED = 0.1


class LabelAudit(NamedTuple):
    """What the embedding says about every label.

    Attributes:
        suggested: ``[N]`` most probable class other than the given one.
        scores: ``[N]`` its probability less that of the given class, -1 to 1: above 0 the label is contradicted.
        order: ``[N]`` indices, the most suspicious first.
        error_rate: estimated share of wrong labels, from confident disagreements alone.
    """

    suggested: Labels
    scores: Floats
    order: Labels
    error_rate: float


class DetectionCurve(NamedTuple):
    """How injected errors rank; entry i is for the first ``i + 1`` images.

    Attributes:
        recall: ``[N]`` share of the errors among them.
        precision: ``[N]`` share of them that are errors.
        recall_at_tenth: recall among the first 10 %.
        average_precision: mean of the precision at every error.
    """

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall_at_tenth: float
    average_precision: float


def audit_labels(
    rows: ArrayLike, labels: ArrayLike, *, neighbours: int = NEIGHBOURS, seed: int = 0
) -> LabelAudit:
    """Judge every label by the images around it.

    Args:
        rows: ``[N, D]`` embeddings or other features of the images.
        labels: ``[N]`` class ids from 0.
        neighbours: how many vote.
        seed: of the folds.

    Raises:
        DatasetError: there are fewer images than folds or neighbours, too many images, or one class.
    """
    values, given = np.asarray(rows, np.float64), np.asarray(labels, np.int64)
    classes = int(given.max(initial=-1)) + 1
    check_count(len(given))
    if len(values) != len(given) or len(given) <= max(FOLDS, neighbours) or classes < 2:
        raise DatasetError(
            f"{len(given)} labels of {classes} classes are too few to audit; give more than "
            f"{max(FOLDS, neighbours)} images of at least 2 classes"
        )
    values = (values - values.mean(0)) / (values.std(0) + 1e-6)
    folds = np.random.default_rng(seed).permutation(len(given)) % FOLDS
    probabilities = np.empty((len(given), classes), np.float32)
    for fold in range(FOLDS):
        judged = np.flatnonzero(folds == fold)
        centre, whitening = _within_class_whitening(values[folds != fold], given[folds != fold], classes)
        space = unit((values - centre) @ whitening)
        found = nearest_neighbours(space[judged], space, neighbours, own=judged)
        probabilities[judged] = knn_probabilities(*found, given, classes)
    everyone = np.arange(len(given))
    own = probabilities[everyone, given]
    others = probabilities.copy()
    others[everyone, given] = -1
    suggested = others.argmax(1).astype(np.int64)
    scores = others[everyone, suggested] - own
    order = np.argsort(-scores, kind="stable")
    return LabelAudit(suggested, scores, order, _estimated_error_rate(probabilities, given))


def check_count(images: int) -> None:
    """Refuse more images than can be compared with each other, before they are embedded.

    Raises:
        DatasetError: there are too many.
    """
    if images > MAX_IMAGES:
        raise DatasetError(f"{images:,} images are more than {MAX_IMAGES:,}; audit a part of them at a time")


def detection_curve(order: ArrayLike, changed: ArrayLike) -> DetectionCurve:
    """Precision and recall of finding the changed labels when images are looked at in ``order``.

    Args:
        order: ``[N]`` indices.
        changed: ``[N]`` bool, at least one true.
    """
    wrong = np.asarray(changed, bool)[np.asarray(order)]
    total = int(wrong.sum())
    if not total:
        raise DatasetError("no label was changed, so there is nothing to find; raise the error rate")
    hits = wrong.cumsum()
    precision = hits / np.arange(1, len(wrong) + 1)
    recall = hits / total
    tenth = max(1, round(REVIEWED * len(wrong)))
    return DetectionCurve(recall, precision, float(recall[tenth - 1]), float(precision[wrong].mean()))


def _within_class_whitening(
    rows: NDArray[np.float64], labels: Labels, classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean ``[D]``, and the inverse square root ``[D, D]`` of the scatter within classes, shrunk to its mean."""
    counts = np.bincount(labels, minlength=classes)
    sums = np.zeros((classes, rows.shape[1]))
    np.add.at(sums, labels, rows)
    deviations = rows - (sums / np.maximum(counts, 1)[:, None])[labels]
    values, vectors = np.linalg.eigh(deviations.T @ deviations / len(rows))
    values = (1 - SHRINKAGE) * np.maximum(values, 0) + SHRINKAGE * values.mean() + 1e-9
    return rows.mean(0), (vectors / np.sqrt(values)) @ vectors.T


def _estimated_error_rate(probabilities: Floats, labels: Labels) -> float:
    """Share of images that another class claims with the confidence that is usual for its own images.

    Confident learning (Northcutt et al.): a class claims an image if its probability reaches the mean that the class
    has over the images labelled so. Of several claims the most probable counts; images without any are left out.
    """
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    own = probabilities[np.arange(len(labels)), labels]
    usual = np.bincount(labels, own, classes) / np.maximum(counts, 1)
    claims = np.where((probabilities >= usual) & (counts > 0) & (probabilities > 0), probabilities, -1)
    claimed = claims.max(1) >= 0
    return float((claims.argmax(1) != labels)[claimed].mean()) if claimed.any() else 0.0
