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
