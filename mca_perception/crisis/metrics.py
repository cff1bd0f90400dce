"""Metrics of single-label classification, all from one confusion matrix (specification, section 5.1).

Weighted averages are weighted by the support of each class, so weighted recall equals accuracy. The figures are those
of scikit-learn with ``zero_division=0``; like there, the macro average leaves out classes that neither the labels nor
the predictions have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mca_perception.errors import DatasetError

__all__ = [
    "Bootstrap",
    "calibration",
    "classification_metrics",
    "confusion_matrix",
    "paired_bootstrap",
    "weighted_f1",
]

CALIBRATION_BINS = 15
Floats = NDArray[np.float64]


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts ``[classes, classes]``: row = label, column = prediction.

    Raises:
        DatasetError: the two differ in length, or an index is not one of ``classes``.
    """
    truth, predicted = np.asarray(labels, np.int64).ravel(), np.asarray(predictions, np.int64).ravel()
    if truth.shape != predicted.shape:
        raise DatasetError(
            f"{len(truth)} labels but {len(predicted)} predictions; give one prediction per label"
        )
    both = np.concatenate([truth, predicted])
    if both.size and not (both.min() >= 0 and both.max() < classes):
        raise DatasetError(f"a class index is outside 0 to {classes - 1}; check the labels")
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def classification_metrics(matrix: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, weighted and macro averages, and every class.

    Args:
        matrix: ``[C, C]`` of :func:`confusion_matrix`.
        names: of the classes.
    """
    precision, recall, f1 = _by_class(matrix)
    support = matrix.sum(1)
    present = (support + matrix.sum(0)) > 0
    share = support / max(1, support.sum())
    return {
        "n": int(support.sum()),
        "accuracy": float(np.trace(matrix) / max(1, support.sum())),
        "weighted_precision": float(share @ precision),
        "weighted_recall": float(share @ recall),
        "weighted_f1": float(share @ f1),
        "macro_f1": float(f1[present].mean()) if present.any() else 0.0,
        "classes": {
            name: {
                "n": int(support[i]),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
            }
            for i, name in enumerate(names)
        },
        "confusion_matrix": matrix.tolist(),
    }


def weighted_f1(labels: ArrayLike, predictions: ArrayLike, classes: int) -> float:
    """Weighted F1 alone."""
    return float(_weighted_f1(confusion_matrix(labels, predictions, classes)))


def calibration(labels: ArrayLike, probabilities: ArrayLike, bins: int = CALIBRATION_BINS) -> dict[str, Any]:
    """How far the probability of the predicted class is its frequency of being right.

    Args:
        labels: ``[N]`` class indices.
        probabilities: ``[N, C]``.
        bins: of equal width over the confidence 0 to 1.

    Returns:
        Expected calibration error, Brier score, negative log-likelihood, and per non-empty bin the count, the mean
        confidence and the accuracy.
    """
    truth, scores = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64)
    confidence, right = scores.max(1), scores.argmax(1) == truth
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    reliability = [
        {
            "from": b / bins,
            "n": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        for b in range(bins)
        if (inside := bin_of == b).any()
    ]
    gaps = [entry["n"] * abs(entry["confidence"] - entry["accuracy"]) for entry in reliability]
    own = scores[np.arange(len(truth)), truth]
    one_hot = np.eye(scores.shape[1])[truth]
    return {
        "expected_calibration_error": float(sum(gaps) / max(1, len(truth))),
        "brier": float(((scores - one_hot) ** 2).sum(1).mean()),
        "negative_log_likelihood": float(-np.log(np.maximum(own, 1e-12)).mean()),
        "reliability": reliability,
    }


class Bootstrap(NamedTuple):
    """Weighted F1 of a model minus that of a baseline on the same posts.

    Attributes:
        difference: on the posts themselves.
        interval95: 2.5th and 97.5th percentile over the resamples.
        share_not_better: share of resamples in which the model is not better.
        resamples: how many.
    """

    difference: float
    interval95: tuple[float, float]
    share_not_better: float
    resamples: int


def paired_bootstrap(
    labels: ArrayLike,
    predictions: ArrayLike,
    baseline: ArrayLike,
    classes: int,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Bootstrap:
    """Resample posts with replacement, both models on the same posts (specification, R6).

    Only the counts of (label, prediction, baseline) matter, so resamples are drawn as multinomial counts of those.
    """
    truth, ours, theirs = (np.asarray(x, np.int64) for x in (labels, predictions, baseline))
    confusion_matrix(ours, theirs, classes)  # checks lengths and indices
    cells = np.bincount((truth * classes + ours) * classes + theirs, minlength=classes**3)
    counts = np.random.default_rng(seed).multinomial(len(truth), cells / len(truth), size=resamples)
    cube = counts.reshape(resamples, classes, classes, classes)
    differences = _weighted_f1(cube.sum(3)) - _weighted_f1(cube.sum(2))
    low, high = np.percentile(differences, (2.5, 97.5))
    return Bootstrap(
        difference=weighted_f1(truth, ours, classes) - weighted_f1(truth, theirs, classes),
        interval95=(float(low), float(high)),
        share_not_better=float((differences <= 0).mean()),
        resamples=resamples,
    )


def _by_class(matrix: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 ``[..., C]`` of matrices ``[..., C, C]``; 0 where undefined."""
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    support, predicted = matrix.sum(-1), matrix.sum(-2)
    return (
        right / np.maximum(predicted, 1),
        right / np.maximum(support, 1),
        2 * right / np.maximum(support + predicted, 1),
    )


def _weighted_f1(matrix: NDArray[np.int64]) -> Floats:
    support = matrix.sum(-1)
    total = np.maximum(support.sum(-1, keepdims=True), 1)
    return np.asarray((support / total * _by_class(matrix)[2]).sum(-1))
