"""Measures of embeddings against direct float64 formulas over all pairs, in one block and in many."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from mca_perception.contrastive import embedding_metrics
from mca_perception.contrastive.embedding_metrics import (
    alignment,
    class_cosines,
    class_margin,
    isotropy,
    paired_cosines,
    uniformity,
)
from mca_perception.errors import ContrastiveError

Array = NDArray[np.float64]

ANGLES = np.deg2rad([0, 20, 60, 100, 150, 200])
GOLDEN = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
LABELS = np.arange(40) % 4


@pytest.fixture(autouse=True, params=[2**22, 100], ids=["one block", "many blocks"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_metrics, "BLOCK_ELEMENTS", request.param)


def rows(seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    return random.normal(size=(4, 6))[LABELS] + random.normal(size=(40, 6))


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def direct(positive: Array, negative: Array) -> tuple[float, float, float, float]:
    """Means, overlap and AUROC from lists of cosines."""
    shares = [np.histogram(values, 100, (-1, 1))[0] / len(values) for values in (positive, negative)]
    wins = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    return float(positive.mean()), float(negative.mean()), float(np.minimum(*shares).sum()), float(wins)


def test_class_cosines() -> None:
    x = unit(rows())
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for i, j in itertools.combinations(range(40), 2):
        kinds[bool(LABELS[i] == LABELS[j])].append(float(x[i] @ x[j]))
    found = class_cosines(3 * rows(), LABELS)
    assert (found.mean_positive, found.mean_negative, found.overlap) == pytest.approx(
        direct(np.array(kinds[True]), np.array(kinds[False]))[:3], abs=1e-12
    )
    assert found.auroc == pytest.approx(direct(np.array(kinds[True]), np.array(kinds[False]))[3], abs=1e-3)
    assert found.gap == found.mean_positive - found.mean_negative
    assert (found.positive_counts.sum(), found.negative_counts.sum()) == (4 * 45, 6 * 100)
    assert len(found.edges) == 101


def test_paired_cosines() -> None:
    a, b = unit(rows(1)), unit(rows(1) + rows(2))
    cosines = a @ b.T
    off = cosines[~np.eye(40, dtype=bool)]
    found = paired_cosines(rows(1), rows(1) + rows(2))
    expected = direct(np.diag(cosines), off)
    assert (found.mean_positive, found.mean_negative, found.overlap) == pytest.approx(expected[:3], abs=1e-12)
    assert found.auroc == pytest.approx(expected[3], abs=1e-3)


def test_separate_classes_do_not_overlap() -> None:
    found = class_cosines([[1, 0], [1, 0.1], [-1, 0], [-1, 0.1]], ["a", "a", "b", "b"])
    assert (found.overlap, found.auroc) == (0, 1)


def test_isotropy_has_the_golden_values() -> None:
    """Specification of the contrastive methods, section 9."""
    assert isotropy(GOLDEN) == pytest.approx(0.48911279, abs=1e-8)
    assert isotropy(3 * GOLDEN) == pytest.approx(0.48911279, abs=1e-8)
    assert isotropy(3 * GOLDEN, normalise=False) == pytest.approx(0.09524825, abs=1e-8)
    assert isotropy([[1, 0], [1, 0], [0, 0.5]], normalise=False) == pytest.approx(0.26967167, abs=1e-8)


def test_isotropy_of_large_norms_does_not_overflow() -> None:
    assert 0 <= isotropy(1e4 * rows(), normalise=False) < 1e-300


def test_alignment_and_uniformity() -> None:
    a, b = unit(rows(3)), unit(rows(4))
    assert alignment(2 * rows(3), rows(4)) == pytest.approx(
        np.mean([np.sum((x - y) ** 2) for x, y in zip(a, b, strict=True)])
    )
    values = [np.exp(-2 * np.sum((a[i] - a[j]) ** 2)) for i, j in itertools.combinations(range(40), 2)]
    assert uniformity(5 * rows(3)) == pytest.approx(np.log(np.mean(values)), abs=1e-12)


def test_class_margin() -> None:
    x = unit(rows(5))
    means = unit(np.stack([x[c == LABELS].mean(0) for c in range(4)]))
    own = [x[i] @ means[LABELS[i]] for i in range(40)]
    other = [max(x[i] @ means[c] for c in range(4) if c != LABELS[i]) for i in range(40)]
    found = class_margin(rows(5), np.array(list("dbca"))[LABELS])
    nearer = np.mean(np.array(other) > np.array(own))
    expected = (np.mean(own), np.mean(other), np.mean(own) - np.mean(other), nearer)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_cosines(rows(), LABELS[:3]), "one per row"),
        (lambda: class_cosines(rows(), np.zeros(40)), "780 pairs belong together and 0 do not"),
        (lambda: class_cosines(rows(), LABELS, bins=0), "0 bins"),
        (lambda: paired_cosines(rows(), rows()[:3]), "are no pairs"),
        (lambda: alignment(np.ones(3), np.ones(3)), r"shape \(3,\)"),
        (lambda: isotropy(np.ones((0, 3))), r"shape \(0, 3\)"),
        (lambda: isotropy(np.full((2, 3), np.nan)), "not finite"),
        (lambda: uniformity(np.ones((1, 3))), "got 1 row"),
        (lambda: class_margin(rows(), np.zeros(40)), "at least two classes"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ContrastiveError, match=message):
        call()
