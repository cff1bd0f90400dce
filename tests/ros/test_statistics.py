import math

import pytest

pytest.importorskip("rclpy")

from mca_perception.ros.statistics import Statistics, percentiles


def test_counts_rates_and_errors() -> None:
    now = [0.0]
    statistics = Statistics(clock=lambda: now[0])
    for _ in range(5):
        now[0] += 0.5
        statistics.count_received()
        statistics.count_processed(latency_ms=20.0, processing_ms=10.0)
    statistics.count_drop("superseded")
    statistics.count_drop("truncated", "image data has 3 bytes")
    snapshot = statistics.snapshot()
    assert (snapshot.received, snapshot.processed) == (5, 5)
    assert snapshot.drops == {"superseded": 1, "truncated": 1}
    assert snapshot.fps == 2.0
    assert snapshot.latency_ms == {"p50": 20.0, "p95": 20.0, "p99": 20.0}
    assert snapshot.error_is_recent
    now[0] += 60
    later = statistics.snapshot()
    assert later.fps == 0.0
    assert later.last_error == "image data has 3 bytes"
    assert not later.error_is_recent


def test_percentiles_of_nothing() -> None:
    assert percentiles([]) == {}
    assert percentiles([1.0, 2.0, 3.0])["p50"] == 2.0


def test_odd_stamps_silence_and_steps_are_kept() -> None:
    now = [0.0]
    statistics = Statistics(clock=lambda: now[0])
    for stamp in (100, 200, 150, 0, 300):
        statistics.count_received(stamp)
    nan = float("nan")
    first = statistics.count_processed(latency_ms=nan, processing_ms=8.0, steps_ms={"backbone": 5.0})
    now[0] = 0.25
    second = statistics.count_processed(
        latency_ms=4.0, processing_ms=8.0, queue_ms=3.0, steps_ms={"backbone": 7.0}
    )
    assert first != first  # NaN: there was none before
    assert second == pytest.approx(250.0)
    now[0] = 9.0
    snapshot = statistics.snapshot()
    assert snapshot.odd_stamps == {"jumped_back": 1, "zero": 1}
    assert snapshot.silent_s == 9.0
    assert snapshot.steps_ms == {"backbone": 6.0}
    assert snapshot.latency_ms["p50"] == 4.0
    assert snapshot.cyclic_ms["p50"] == 250.0
    assert snapshot.queue_ms["p99"] == pytest.approx(2.97)


def test_images_are_counted_and_their_stamps_judged_whether_processed_or_not() -> None:
    now = [0.0]
    statistics = Statistics(clock=lambda: now[0])
    assert math.isnan(statistics.snapshot().stamp_age_ms)
    for second in range(1, 6):
        now[0] += 0.25
        statistics.count_received(second * 10**9, second * 10**9 + 30_000_000)
        statistics.count_drop("superseded")
    snapshot = statistics.snapshot()
    assert (snapshot.input_fps, snapshot.fps, snapshot.stamp_age_ms) == (4.0, 0.0, 30.0)
    statistics.count_received(0, 10**9)
    assert math.isnan(statistics.snapshot().stamp_age_ms)


def test_errors_of_transitions_are_kept_apart_from_those_of_frames() -> None:
    statistics = Statistics()
    statistics.count_drop("truncated", "cut off")
    statistics.note_transition("no such model")
    snapshot = statistics.snapshot()
    assert (snapshot.last_error, snapshot.transition_error) == ("no such model", "no such model")
    statistics.note_transition("")
    snapshot = statistics.snapshot()
    assert (snapshot.last_error, snapshot.transition_error) == ("cut off", "")
