from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mca_perception.defects.operating_point import allowed_false_alarms, choose_threshold
from mca_perception.defects.scores import Answer, answer, scores_of
from mca_perception.defects.streaming import RunningAnswer, largest_scores


def clips(rng: np.random.Generator, count: int) -> np.ndarray:
    """Scores of nominal clips of 12 frames that resemble each other within a clip."""
    return rng.normal(0, 1, (count, 1)) + rng.normal(0, 0.5, (count, 12))


def test_promise_holds_for_whole_clips_wherever_one_stops() -> None:
    rng = np.random.default_rng(0)
    fpr, confidence, runs = 0.1, 0.9, 200
    fresh = largest_scores(clips(rng, 20_000))
    broken = 0
    for _ in range(runs):
        threshold = choose_threshold(largest_scores(clips(rng, 120)), fpr, confidence).threshold
        broken += (fresh > threshold).mean() > fpr
    assert broken <= stats.binom.ppf(0.999, runs, 1 - confidence)
    assert allowed_false_alarms(120, fpr, confidence) > 0


def test_alarm_comes_with_the_first_high_score_and_stays() -> None:
    running = RunningAnswer(0.5)
    assert [running.update(score) for score in (0.1, 0.5, 0.7, 0.0)] == [
        Answer.ANOTHER_VIEW,
        Answer.ANOTHER_VIEW,
        Answer.ALARM,
        Answer.ALARM,
    ]
    assert (running.frames, running.peak) == (3, 0.7)
    assert running.finish() is Answer.ALARM


def test_quiet_clips_pass_early() -> None:
    running = RunningAnswer(0.5, clear_below=0.2, patience=3)
    answers = [running.update(0.1) for _ in range(5)]
    assert answers == [Answer.ANOTHER_VIEW] * 2 + [Answer.NOMINAL] * 3
    assert running.frames == 3


def test_undecided_clips_run_to_their_end() -> None:
    running = RunningAnswer(0.5, clear_below=0.2, patience=2)
    assert {running.update(score) for score in (0.3, 0.1, 0.4)} == {Answer.ANOTHER_VIEW}
    assert running.finish() is Answer.NOMINAL


@pytest.mark.parametrize(
    ("score", "clear_below", "last_view", "expected"),
    [
        (0.9, 0.2, False, Answer.ALARM),
        (0.5, 0.2, False, Answer.ANOTHER_VIEW),
        (0.4, 0.2, False, Answer.ANOTHER_VIEW),
        (0.4, 0.2, True, Answer.NOMINAL),
        (0.1, 0.2, False, Answer.NOMINAL),
        (0.4, None, False, Answer.NOMINAL),
    ],
)
def test_three_answers(score: float, clear_below: float | None, last_view: bool, expected: Answer) -> None:
    assert answer(score, 0.5, clear_below, last_view=last_view) is expected


def test_small_scores_stay_distinct() -> None:
    scores = scores_of(np.array([[60.0, 0.0, 0.0], [61.0, 0.0, 0.0]]), 1.0)
    assert scores["combined"][0] > scores["combined"][1] > 0
    np.testing.assert_allclose(scores["combined"], scores["multi_pick"] + scores["package_defect"])
