"""Injected errors are found, no label judges itself, and odd data sets are named."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mca_perception.classification.label_audit import audit_labels, check_count, detection_curve
from mca_perception.classification.label_noise import inject_label_errors
from mca_perception.errors import DatasetError

CLASSES, PER_CLASS = 12, 25


@pytest.fixture(scope="module")
def clusters() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Classes that differ in some directions only; others vary more, within every class."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    telling = rng.normal(size=(CLASSES, 8))[labels] + 0.35 * rng.normal(size=(len(labels), 8))
    return np.hstack([telling, 6 * rng.normal(size=(len(labels), 8))]), labels


@pytest.mark.parametrize("seed", [0, 1])
def test_finds_random_errors_and_names_the_true_class(clusters, seed: int) -> None:
    rows, labels = clusters
    errors = inject_label_errors(labels, 0.05, "symmetric", seed=seed)
    audit = audit_labels(rows, errors.labels)
    curve = detection_curve(audit.order, errors.changed)
    assert curve.recall_at_tenth >= 0.9
    assert (audit.suggested == labels)[errors.changed].mean() >= 0.9
    assert 0.02 < audit.error_rate < 0.1
    assert audit.error_rate > audit_labels(rows, labels).error_rate


def test_order_follows_the_score_and_suggests_another_class(clusters) -> None:
    rows, labels = clusters
    audit = audit_labels(rows, labels)
    assert sorted(audit.order) == list(range(len(labels)))
    assert (np.diff(audit.scores[audit.order]) <= 0).all()
    assert (audit.suggested != labels).all()


def test_no_label_takes_part_in_its_own_judgement(clusters) -> None:
    rows, labels = clusters
    other = labels.copy()
    other[7] = 5
    before, after = audit_labels(rows, labels), audit_labels(rows, other)
    # The neighbours' votes stay; what changes is which of them counts for the label.
    assert before.suggested[7] != labels[7]
    assert after.suggested[7] == labels[7]
    assert after.scores[7] > 0 > before.scores[7]


def test_detection_curve_by_hand() -> None:
    curve = detection_curve([2, 0, 1, 3], [True, False, True, False])
    assert curve.recall.tolist() == [0.5, 1, 1, 1]
    assert curve.precision.tolist() == pytest.approx([1, 1, 2 / 3, 0.5])
    assert (curve.recall_at_tenth, curve.average_precision) == (0.5, 1.0)
    with pytest.raises(DatasetError, match="no label was changed"):
        detection_curve([0, 1], [False, False])


@pytest.mark.parametrize(
    ("count", "labels"), [(8, [0, 1] * 4), (40, [0] * 40)], ids=["too few images", "one class"]
)
def test_too_little_to_audit_is_named(count: int, labels: list[int]) -> None:
    with pytest.raises(DatasetError, match="too few to audit"):
        audit_labels(np.random.default_rng(0).normal(size=(count, 3)), labels)


def test_too_many_images_are_refused() -> None:
    with pytest.raises(DatasetError, match="100,001 images are more than 100,000"):
        check_count(100_001)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
def test_symmetric_errors_change_so_many_labels(rate: float) -> None:
    labels = np.arange(200) % 7
    errors = inject_label_errors(labels, rate, "symmetric", seed=1)
    assert errors.changed.sum() == round(rate * 200)
    assert ((errors.labels != labels) == errors.changed).all()
    assert errors.labels.min() >= 0
    assert errors.labels.max() < 7
    assert (errors.labels == inject_label_errors(labels, rate, "symmetric", seed=1).labels).all()


def test_look_alike_errors_go_to_the_nearest_other_class() -> None:
    """The items nearest to another class' centre, and that class (specification, section 10)."""
    angles = np.deg2rad([0, 2, 30, 90, 92, 94, 180, 182, 181])
    labels = np.repeat([0, 1, 2], 3)
    errors = inject_label_errors(
        labels, 1 / 9, "look-alike", embeddings=np.stack([np.cos(angles), np.sin(angles)], 1)
    )
    assert np.flatnonzero(errors.changed).tolist() == [2]
    assert errors.labels[2] == 1


@pytest.mark.parametrize(
    ("labels", "rate", "kind", "message"),
    [
        ([0, 1], 1.5, "symmetric", "error rate 1.5"),
        ([0, 0], 0.1, "symmetric", "1 classes"),
        ([0, 1], 0.5, "look-alike", "need embeddings"),
    ],
)
def test_bad_settings_are_named(labels, rate, kind, message) -> None:
    with pytest.raises(DatasetError, match=message):
        inject_label_errors(labels, rate, kind)
