"""A linear model on TF-IDF weighted n-grams: scikit-learn fits it, and one small graph runs it.

Term frequencies are sublinear, ``1 + ln(count)``; inverse document frequencies ``ln((1 + n) / (1 + df)) + 1``, as in
scikit-learn. Word and character features are scaled to length one apart, so that neither kind drowns the other. The
classifier is a linear support vector machine, one class against the rest; its margins become probabilities by a
softmax with one temperature, fitted on out-of-fold predictions of the training tweets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.crisis.features import NgramConfig, NgramFeatures
from mca_perception.errors import DatasetError

__all__ = [
    "LinearModel",
    "LinearSettings",
    "TermCounts",
    "count_terms",
    "fit_linear",
    "fit_margins",
    "softmax",
]

SMALLEST_NORM = 1e-9
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LinearSettings:
    """How the model is fitted.

    Attributes:
        c: inverse strength of the regularisation.
        balance: 0 weighs all posts alike, 1 all classes; between them the weight of a class is its share to the power
            of ``-balance``.
        min_documents: features in fewer training texts have no weight.
        folds: for the temperature.
        seed: of the folds.
    """

    c: float = 0.2
    balance: float = 0.0
    min_documents: int = 2
    folds: int = 4
    seed: int = 0


@dataclass(frozen=True)
class TermCounts:
    """Features of texts as a sparse matrix.

    Attributes:
        matrix: scipy CSR ``[N, size]`` float32 of counts.
        config: of the features.
    """

    matrix: Any
    config: NgramConfig

    def __getitem__(self, rows: NDArray[np.int64]) -> TermCounts:
        return TermCounts(self.matrix[rows], self.config)

    def __len__(self) -> int:
        return int(self.matrix.shape[0])


@dataclass(frozen=True)
class LinearModel:
    """A fitted model.

    Attributes:
        config: of the features.
        idf: ``[size]`` inverse document frequencies; 0 for features without a weight.
        weights: ``[size, C]``.
        bias: ``[C]``.
        temperature: divides the margins before the softmax.
    """

    config: NgramConfig
    idf: Floats
    weights: Floats
    bias: Floats
    temperature: float = 1.0

    def rounded(self) -> LinearModel:
        """The same with tables rounded to float16, as a bundle stores them."""
        idf, weights = (table.astype(np.float16).astype(np.float32) for table in (self.idf, self.weights))
        return replace(self, idf=idf, weights=weights)

    def margins(self, terms: TermCounts) -> Floats:
        """``[N, C]``, before temperature and softmax."""
        return np.asarray(tf_idf(terms, self.idf) @ self.weights + self.bias, np.float32)

    def probabilities(self, terms: TermCounts) -> Floats:
        """``[N, C]``."""
        return softmax(self.margins(terms) / self.temperature)


def count_terms(texts: Sequence[str], config: NgramConfig) -> TermCounts:
    """Count the features of texts."""
    from scipy.sparse import csr_matrix

    features = NgramFeatures(config)
    counts = [features.count(text) for text in texts]
    ends = np.cumsum([0, *map(len, counts)])
    ids = np.fromiter((name for row in counts for name in row), np.int64, count=ends[-1])
    values = np.fromiter((value for row in counts for value in row.values()), np.float32, count=ends[-1])
    return TermCounts(csr_matrix((values, ids, ends), shape=(len(counts), config.size)), config)


def tf_idf(terms: TermCounts, idf: Floats) -> Any:
    """Weighted features ``[N, size]`` as CSR, either kind of length one."""
    matrix = terms.matrix.copy()
    matrix.data = (1 + np.log(matrix.data)) * idf[matrix.indices]
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    is_word = matrix.indices < terms.config.buckets
    for kind in (is_word, ~is_word):
        squares = np.bincount(rows[kind], matrix.data[kind] ** 2, minlength=matrix.shape[0])
        matrix.data[kind] /= np.maximum(np.sqrt(squares), SMALLEST_NORM)[rows[kind]]
    return matrix


def fit_linear(
    terms: TermCounts, labels: NDArray[np.int64], classes: int, settings: LinearSettings
) -> tuple[LinearModel, Floats]:
    """Fit model and temperature.

    Args:
        terms: of the training texts.
        labels: ``[N]`` class indices.
        classes: number of classes.
        settings: how.

    Returns:
        The model, and the out-of-fold probabilities ``[N, classes]`` of the training texts.

    Raises:
        DatasetError: there are fewer texts than folds, or some class has no text.
    """
    absent = set(range(classes)) - set(labels.tolist())
    if len(terms) < settings.folds or absent:
        raise DatasetError(
            f"{len(terms)} training texts are too few for {settings.folds} folds, or a class has "
            "none; add data"
        )
    margins = np.zeros((len(terms), classes), np.float32)
    for train, held_out in _folds(len(terms), settings):
        margins[held_out] = fit_margins(terms[train], labels[train], classes, settings).margins(
            terms[held_out]
        )
    temperature = fit_temperature(margins, labels)
    model = replace(fit_margins(terms, labels, classes, settings), temperature=temperature)
    return model, softmax(margins / temperature)


def fit_temperature(margins: Floats, labels: NDArray[np.int64]) -> float:
    """The temperature with the least negative log-likelihood."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        probabilities = softmax(margins / np.exp(log_temperature))
        return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


def softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True), np.float32)


def _folds(count: int, settings: LinearSettings) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    fold_of = np.random.default_rng(settings.seed).permutation(count) % settings.folds
    for fold in range(settings.folds):
        yield np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)


def fit_margins(
    terms: TermCounts, labels: NDArray[np.int64], classes: int, settings: LinearSettings
) -> LinearModel:
    """Fit without a temperature; a class that the texts lack keeps a margin below all others.

    Raises:
        DatasetError: the texts are all of one class.
    """
    from sklearn.svm import LinearSVC

    count, size = terms.matrix.shape
    documents = np.bincount(terms.matrix.indices, minlength=size)
    idf = np.log((1 + count) / (1 + documents)) + 1
    idf = np.where(documents >= settings.min_documents, idf, 0).astype(np.float32)
    present, counts = np.unique(labels, return_counts=True)
    if len(present) < 2:
        raise DatasetError(f"all {count} training texts are of one class; add texts of another")
    class_weight = dict(
        zip(present.tolist(), (count / len(present) / counts) ** settings.balance, strict=True)
    )
    machine = LinearSVC(C=settings.c, class_weight=class_weight, random_state=settings.seed)
    machine.fit(tf_idf(terms, idf), labels)
    weights, bias = np.zeros((size, classes), np.float32), np.full(classes, -2.0, np.float32)
    if len(machine.classes_) == 2:  # scikit-learn keeps one row then, for the second class
        weights[:, machine.classes_] = np.concatenate([-machine.coef_, machine.coef_]).T
        bias[machine.classes_] = np.array([-1, 1]) * machine.intercept_
    else:
        weights[:, machine.classes_] = machine.coef_.T
        bias[machine.classes_] = machine.intercept_
    return LinearModel(terms.config, idf, weights, bias)
