"""Rates of wrong pairs: worked examples, simulation, and a direct count."""

import itertools

import numpy as np
import pytest

from mca_perception.contrastive import expected_pair_errors, measured_pair_errors
from mca_perception.errors import ContrastiveError


@pytest.mark.parametrize(
    ("rate", "classes", "false_positive", "false_negative"),
    [
        (0.05, 200, 0.09748744, 0.00048989),
        (0.2, 5, 0.35, 0.0875),
        (0.0, 10, 0.0, 0.0),
        (0.5, 2, 0.5, 0.5),
    ],
)
def test_worked_examples(rate: float, classes: int, false_positive: float, false_negative: float) -> None:
    found = expected_pair_errors(rate, n_classes=classes)
    assert found == pytest.approx((false_positive, false_negative), abs=1e-8)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_share_depends_on_the_number_of_classes_only(classes: int) -> None:
    shares = [
        expected_pair_errors(rate, n_classes=classes).false_positive_share for rate in (0.01, 0.033, 0.3)
    ]
    assert shares == pytest.approx([1 - 1 / classes] * 3)


def test_equal_to_simulated_labels() -> None:
    random = np.random.default_rng(0)
    latent = np.repeat(np.arange(10), 4000)
    wrong = random.random(len(latent)) < 0.2
    assigned = np.where(wrong, (latent + random.integers(1, 10, len(latent))) % 10, latent)
    found, expected = measured_pair_errors(latent, assigned), expected_pair_errors(0.2, n_classes=10)
    assert found == pytest.approx(expected, rel=0.03)
    # By number of pairs, not by rate, false positives are half of the errors: negatives are C - 1 times as many.
    same = sum(int(count) * (int(count) - 1) // 2 for count in np.bincount(assigned))
    different = len(latent) * (len(latent) - 1) // 2 - same
    wrong_positives, wrong_negatives = found.false_positive * same, found.false_negative * different
    assert wrong_positives / (wrong_positives + wrong_negatives) == pytest.approx(0.5, abs=0.01)


def test_equal_to_counting_pairs() -> None:
    random = np.random.default_rng(1)
    latent, assigned = random.integers(0, 3, (2, 30))
    counts = {(a, b): 0 for a in (True, False) for b in (True, False)}
    for i, j in itertools.combinations(range(30), 2):
        counts[bool(assigned[i] == assigned[j]), bool(latent[i] == latent[j])] += 1
    found = measured_pair_errors(latent, assigned)
    assert found.false_positive == counts[True, False] / (counts[True, False] + counts[True, True])
    assert found.false_negative == counts[False, True] / (counts[False, True] + counts[False, False])


def test_absent_kinds_of_pairs_have_no_errors() -> None:
    assert measured_pair_errors([0, 1], [0, 1]) == (0, 0)
    assert measured_pair_errors([0], [0]).false_positive_share == 0


@pytest.mark.parametrize(("rate", "classes"), [(-0.1, 10), (1.1, 10), (0.1, 1), (float("nan"), 3)])
def test_bad_rates_are_named(rate: float, classes: int) -> None:
    with pytest.raises(ContrastiveError, match="at least 2 classes"):
        expected_pair_errors(rate, n_classes=classes)


def test_labels_must_match() -> None:
    with pytest.raises(ContrastiveError, match="labels of shapes"):
        measured_pair_errors([0, 1], [0])
