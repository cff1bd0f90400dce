from __future__ import annotations

import numpy as np
import pytest

from mca_perception.defects.clips.metrics import (
    ClipScores,
    bit_figures,
    bit_thresholds,
    nominal_peaks,
    stream_figures,
)

# Five clips: found at once, found late, missed, nominal and quiet, nominal with one wrong frame.
FRAMES = [
    [[0.9, 0.1], [0.2, 0.1]],
    [[0.1, 0.1], [0.2, 0.3], [0.1, 0.8]],
    [[0.2, 0.1], [0.3, 0.1]],
    [[0.1, 0.1]] * 4,
    [[0.1, 0.1], [0.6, 0.2]],
]
SCORES = ClipScores(
    [np.array(frames) for frames in FRAMES],
    np.array([[1, 0], [0, 1], [1, 0], [0, 0], [0, 0]], np.bool_),
    [0, 1, None, None, None],
)


def test_bits_by_hand() -> None:
    figures = bit_figures(SCORES)
    assert figures["open_accuracy"] == pytest.approx(3 / 5)  # one missed, one false
    assert figures["deconstruction_accuracy"] == 1
    assert figures["accuracy"] == pytest.approx(8 / 10)
    assert figures["exact_match"] == pytest.approx(3 / 5)
    assert figures["deconstruction_auc"] == 1
    assert figures["open_auc"] == pytest.approx((3 + 2) / 6)
    assert figures["any_defect_auc"] == pytest.approx((2 + 2 + 1) / 6)


def test_thresholds_are_those_that_are_right_most_often() -> None:
    thresholds = bit_thresholds(SCORES)
    assert thresholds == pytest.approx((0.6, 0.5))
    figures = bit_figures(SCORES, thresholds)
    assert figures["open_accuracy"] == pytest.approx(4 / 5)  # one missed
    assert figures["deconstruction_accuracy"] == 1
    assert figures["nominal_share"] == pytest.approx(2 / 5)


def test_a_bit_that_never_occurs_has_no_auc() -> None:
    figures = bit_figures(ClipScores([np.zeros((2, 2))], np.zeros((1, 2), np.bool_), [None]))
    assert (figures["open_auc"], figures["exact_match"]) == (None, 1)


def test_streams_by_hand() -> None:
    figures = stream_figures(SCORES, 0.55, clear_below=0.15, patience=2)
    assert figures["recall"] == pytest.approx(2 / 3)
    assert figures["false_positive_rate"] == pytest.approx(1 / 2)
    assert figures["frames_to_alarm_median"] == 2  # after 1 and 3 frames
    assert figures["frames_after_visible_median"] == pytest.approx(0.5)  # 0 and 1 frames after it shows
    assert figures["frames_looked_at_of_nominal"] == pytest.approx((2 / 4 + 2 / 2) / 2)


def test_nominal_peaks() -> None:
    assert nominal_peaks(SCORES).tolist() == [0.1, 0.6]
