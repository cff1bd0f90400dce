"""`mca bench` beside peers: what is measured, what is left out and why, and the file that it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mca_perception.cli import bench_cases
from mca_perception.cli.bench_measure import figures, interleave, machine_peaks
from mca_perception.cli.main import main
from mca_perception.errors import McaError
from tests.support.bundles import write_colour_bundle


@pytest.fixture
def small_machine(monkeypatch) -> None:
    monkeypatch.setattr("mca_perception.cli.bench_measure._GEMM_SIDE", 64)
    monkeypatch.setattr("mca_perception.cli.bench_measure._COPY_BYTES", 1 << 16)
    monkeypatch.setattr(bench_cases, "SCENES", 1)


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mca", "bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize("what", ["pipeline", "segmentation"])
def test_figures_and_provenance_are_written(small_machine, monkeypatch, tmp_path, capsys, what) -> None:
    bundle = write_colour_bundle(tmp_path / "colours")
    target = tmp_path / "new" / "figures.json"
    options = ["--session", "onnxruntime-cpu,tensorrt", "--runs", 2, "--threads", 1, "--json", target]
    assert run(monkeypatch, what, "--model", bundle.path, "--against", "torch-eager", *options) == 0
    written = json.loads(target.read_text())
    figures_of = written["cases"]["640 x 512"]
    assert set(figures_of) == {"onnxruntime-cpu"}
    row = figures_of["onnxruntime-cpu"]
    assert row["fastest_ms"] <= row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert row["images_per_second"] == pytest.approx(1000 / row["p50_ms"], rel=0.01)
    assert row["ratio_to_fastest"] == 1
    assert written["model"]["fingerprint"] == bundle.fingerprint
    assert written["peaks"]["gemm_gflop_per_s"] > 0
    assert set(written["left_out"]) == {"tensorrt", "torch-eager"}  # the bundle has no weights
    assert "tensorrt is left out: " in capsys.readouterr().out
    assert len(written["input_sha256"]) == 64
    assert {"device", "versions", "created", "threads", "seed"} <= set(written)


def test_unknown_candidates_are_refused(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "pipeline", "--session", "tpu") == 2
    assert "there is no session 'tpu'; choose from" in capsys.readouterr().err
    assert run(monkeypatch, "pipeline", "--against", "timm") == 2
    assert "there is no peer 'timm' for this benchmark" in capsys.readouterr().err


def test_candidates_take_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    found = interleave(calls, 3, images=2, gflop=1.0)
    assert "".join(order) == "ab" + "ab" * 3
    assert found["a"]["gflop_per_s"] > 0


def test_percentiles() -> None:
    found = figures([float(value) for value in range(1, 101)], images=4)
    assert (found["p50_ms"], found["fastest_ms"]) == (50.5, 1)
    assert found["p99_ms"] == pytest.approx(99.01)
    assert found["images_per_second"] == pytest.approx(4000 / 50.5, abs=0.01)
    assert "gflop_per_s" not in found


def test_peaks_are_measured(small_machine) -> None:
    assert all(value > 0 for value in machine_peaks(1).values())


def test_graphs_outside_bundles_run_in_some_back_ends_only(tmp_path: Path) -> None:
    bundle = write_colour_bundle(tmp_path / "colours")
    session = bench_cases._open_file(bundle.path_of("backbone"), "onnxruntime-cpu", 1)
    assert session.run({"images": np.zeros((1, 3, 32, 32), np.float32)})["features"].shape == (1, 5, 3)
    with pytest.raises(McaError, match="runs bundles only"):
        bench_cases._open_file(bundle.path_of("backbone"), "triton", 1)
