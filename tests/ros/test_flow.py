import pytest

pytest.importorskip("rclpy")

from mca_perception.ros.flow import AnswerTracker, Pacer


@pytest.mark.parametrize(
    ("rate_hz", "times_s", "expected"),
    [
        (10.0, [None, None, None], [0.0, 0.1, 0.2]),
        (10.0, [0.0, 5.0], [0.0, 0.1]),
        (0.0, [None, None], [0.0, 0.0]),
        (0.0, [3.0, 3.5, 3.75], [0.0, 0.5, 0.75]),
        (0.0, [3.0, 1.0], [0.0, 0.0]),
    ],
)
def test_pace_follows_the_rate_or_the_recording(
    rate_hz: float, times_s: list[float | None], expected: list[float]
) -> None:
    pacer = Pacer(rate_hz, clock=lambda: 0.0)
    delays = [pacer.delay(None if time is None else int(time * 1e9)) for time in times_s]
    assert delays == pytest.approx(expected)


def test_a_late_image_moves_the_next_ones() -> None:
    now = [0.0]
    pacer = Pacer(10.0, clock=lambda: now[0])
    assert pacer.delay(None) == 0.0
    now[0] = 1.0
    assert pacer.delay(None) == 0.0
    assert pacer.delay(None) == pytest.approx(0.1)


def test_answers_are_matched_by_stamp_and_given_up_in_time() -> None:
    now = [0.0]
    tracker = AnswerTracker(timeout_s=5.0, clock=lambda: now[0])
    tracker.sent(1)
    tracker.sent(2)
    tracker.answer(99)
    tracker.answer(1)
    assert (tracker.in_flight(), tracker.answered, tracker.unanswered) == (1, 1, 0)
    now[0] = 5.0
    assert (tracker.in_flight(), tracker.answered, tracker.unanswered) == (0, 1, 1)
    tracker.answer(2)
    assert tracker.answered == 1


def test_an_answer_gives_up_the_images_before_it() -> None:
    tracker = AnswerTracker(timeout_s=5.0, clock=lambda: 0.0)
    for stamp in (1, 2, 3):
        tracker.sent(stamp)
    tracker.answer(2)
    assert (tracker.in_flight(), tracker.answered, tracker.unanswered) == (1, 1, 1)
