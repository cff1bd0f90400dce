"""What the perception node's status says of its counts and facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticStatus

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.sessions.cuda_memory import gpu_memory
from mca_perception.identification import Gallery
from mca_perception.ros.diagnostics import perception_status
from mca_perception.ros.engine import Engine
from mca_perception.ros.statistics import Statistics

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


def verdict(state: str, statistics: Statistics, **facts: Any) -> tuple[bytes, str]:
    return perception_status(state, statistics.snapshot(), facts)[:2]


def test_a_bad_frame_of_yesterday_does_not_explain_a_node_that_was_cleaned_up() -> None:
    now = [0.0]
    statistics = Statistics(clock=lambda: now[0])
    statistics.count_drop("truncated", "JPEG is cut off")
    assert verdict("active", statistics) == (WARN, "JPEG is cut off")
    assert verdict("unconfigured", statistics) == (OK, "unconfigured")
    now[0] = 86_400.0
    assert perception_status("active", statistics.snapshot(), {})[2]["last_error"] == "JPEG is cut off"


def test_frames_without_results_are_a_warning_however_many_give_way_to_newer_ones() -> None:
    now = [100.0]
    statistics = Statistics(clock=lambda: now[0])
    statistics.count_received()
    now[0] += 1
    statistics.count_processed(latency_ms=1, processing_ms=1)
    assert statistics.snapshot().stalled_s == 0
    for _ in range(12):
        now[0] += 0.5
        statistics.count_received()
        if statistics.snapshot().received > 2:
            statistics.count_drop("superseded")
    assert statistics.snapshot().stalled_s == 5.5
    assert verdict("active", statistics) == (
        WARN,
        "no result for 6 s: the model hangs, or is too slow for this machine",
    )
    statistics.count_processed(latency_ms=1, processing_ms=1)
    assert verdict("active", statistics)[0] == OK


def test_a_failed_transition_is_an_error_until_the_next_one() -> None:
    statistics = Statistics()
    statistics.note_transition("no such model")
    assert verdict("unconfigured", statistics) == (ERROR, "not configured: no such model")
    assert verdict("inactive", statistics) == (ERROR, "not active: no such model")
    assert verdict("active", statistics) == (ERROR, "still active: no such model")
    assert perception_status("inactive", statistics.snapshot(), {})[2]["transition_error"] == "no such model"
    statistics.note_transition("")
    assert verdict("inactive", statistics) == (OK, "inactive")
    assert verdict("configuring", statistics, building="loading m") == (OK, "configuring: loading m")


def test_an_empty_gallery_is_one(colour_bundle: Path, tmp_path: Path) -> None:
    fingerprint = ModelBundle.open(colour_bundle).embedding_fingerprint
    Gallery.open(tmp_path / "empty.gallery", model=fingerprint).close()
    engine = Engine(colour_bundle, gallery=tmp_path / "empty.gallery")
    facts = engine.facts()
    assert (facts["gallery"], facts["gallery_products"], facts["gallery_problem"]) == ("yes", 0, "")
    level, message = verdict("active", Statistics(), **facts)
    assert (level, "gallery is empty" in message) == (WARN, True)
    assert Engine(colour_bundle).facts()["gallery"] == ""
    engine.close()


def test_an_emptied_gallery_that_another_model_took_over_gives_no_products(
    colour_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "taken.gallery"
    Gallery.open(path, model=ModelBundle.open(colour_bundle).embedding_fingerprint).close()
    engine = Engine(colour_bundle, gallery=path)
    with Gallery.open(path, model="another") as other:
        other.add("P", [1.0, 0.0, 0.0, 0.0])
    assert "now holds embeddings of model another" in engine.facts()["gallery_problem"]
    engine.close()


def test_memory_of_a_gpu_is_told_where_the_model_runs_on_one(colour_bundle: Path) -> None:
    assert not [name for name in Engine(colour_bundle, session="onnxruntime-cpu").facts() if "gpu" in name]
    memory = gpu_memory()
    assert memory is None or 0 < memory[0] < memory[1]


def test_frames_of_which_none_is_processed_are_no_good_sign() -> None:
    statistics = Statistics()
    for cause in ("superseded", "incomplete"):
        statistics.count_received(1)
        statistics.count_drop(cause)
    level, message, _ = perception_status("active", statistics.snapshot(), {})
    assert level == DiagnosticStatus.WARN
    assert message == "2 frames received, none processed; dropped: incomplete 1, superseded 1"
    statistics.count_processed(latency_ms=1, processing_ms=1)
    assert perception_status("active", statistics.snapshot(), {})[0] == DiagnosticStatus.OK
