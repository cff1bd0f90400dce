"""`mca bench` beside peers: what is measured, what is left out and why, and the file that it writes."""

from __future__ import annotations

import json
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mca_perception.backbone import create_backbone
from mca_perception.cli import bench_backbone, bench_scenes
from mca_perception.cli.bench_cases import BenchSettings
from mca_perception.cli.bench_measure import figures, interleave, interleave_images
from mca_perception.cli.bench_peaks import MachinePeaks
from mca_perception.cli.main import main
from mca_perception.errors import McaError
from tests.support.bundles import write_colour_bundle


@pytest.fixture
def small_machine(monkeypatch) -> None:
    monkeypatch.setattr("mca_perception.cli.bench_peaks._SHAPES", ((64, 64, 64), (16, 32, 64)))
    monkeypatch.setattr("mca_perception.cli.bench_peaks._COPY_BYTES", 1 << 16)
    monkeypatch.setattr(bench_scenes, "SCENES", 1)


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
    assert set(written["cases"]) == {"640 x 512, one by one", "640 x 512, 2 at once"}
    for figures_of in written["cases"].values():
        assert set(figures_of) == {"onnxruntime-cpu"}
        row = figures_of["onnxruntime-cpu"]
        assert row["fastest_ms"] <= row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["images_per_second"] > 0
        assert row["ratio_to_fastest"] == 1
    assert written["most_objects"] >= written["objects_per_image"] >= 0
    assert written["model"]["fingerprint"] == bundle.fingerprint
    assert written["peaks"]["gemm_gflop_per_s"] > 0
    sizes = (
        {f"{side} x {side}, network input too" for side in (512, 1024)} if what == "segmentation" else set()
    )
    assert set(written["left_out"]) == {"tensorrt", "torch-eager", *sizes}  # the bundle has no weights
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


@pytest.mark.parametrize("at_once", [1, 3])
def test_images_at_once_are_timed_one_by_one(at_once: int) -> None:
    """Images at once wait for each other: nobody gets past the barrier alone."""
    barrier = threading.Barrier(at_once, timeout=30)
    seen: list[tuple[str, int]] = []
    rounds: list[int] = []

    def call(name: str, image: int) -> None:
        barrier.wait()
        seen.append((name, image))

    calls = {name: partial(call, name) for name in "ab"}
    found = interleave_images(calls, [7, 8], 3, at_once=at_once, between=lambda: rounds.append(len(seen)))
    turn = 2 * at_once
    assert [name for name, _ in seen[::turn]] == list("ab" * 4)
    assert sorted(image for _, image in seen[:turn]) == [7] * at_once + [8] * at_once
    assert rounds == [2 * turn * done for done in (1, 2, 3)]
    for row in found.values():
        assert row["fastest_ms"] <= row["p50_ms"]
        assert row["spread"] >= 0
        assert row["images_per_second"] > 0


def test_peaks_are_the_best_of_all_samples(small_machine) -> None:
    peaks = MachinePeaks(1)
    for _ in range(4):
        peaks.sample()
    found = peaks.figures()
    assert found["samples"] == 5
    products = found["gemm_products"]
    assert {"onnxruntime 64 x 64 x 64", "onnxruntime 16 x 32 x 64", "torch 64 x 64 x 64"} <= set(products)
    assert all(0 < values["median"] <= values["best"] for values in products.values())
    assert found["gemm_gflop_per_s"] == products[found["gemm_product"]]["best"]
    assert found["gemm_gflop_per_s"] == max(values["best"] for values in products.values())
    assert found["copy_gb_per_s"] > 0


def test_graphs_outside_bundles_run_in_some_back_ends_only(tmp_path: Path) -> None:
    bundle = write_colour_bundle(tmp_path / "colours")
    session = bench_backbone._open_file(bundle.path_of("backbone"), "onnxruntime-cpu", 1)
    assert session.run({"images": np.zeros((1, 3, 32, 32), np.float32)})["features"].shape == (1, 5, 3)
    with pytest.raises(McaError, match="runs bundles only"):
        bench_backbone._open_file(bundle.path_of("backbone"), "triton", 1)


@pytest.mark.slow
def test_the_backbone_runs_in_sessions_compiled_and_beside_a_peer(small_machine, monkeypatch) -> None:
    monkeypatch.setattr(bench_backbone, "BACKBONE_SIDE", 64)
    monkeypatch.setattr(bench_backbone, "BATCHES", (2,))
    monkeypatch.setattr(
        bench_backbone,
        "build_ours",
        lambda side: create_backbone("beit3_nano_patch16", img_size=side, modalities=("vision",), depth=1),
    )
    machine = MachinePeaks(1)
    settings = BenchSettings(runs=1, threads=1, between=machine.sample)
    outcome = bench_backbone.bench_backbone(["onnxruntime-cpu", "torch"], ["torch-eager"], settings)
    expected = {"onnxruntime-cpu", "torch", "torch-eager"} - set(outcome.left_out)
    assert set(outcome.left_out) <= {"torch"}  # where there is no compiler
    assert set(outcome.cases) == {"base 64 px, batch 2"}
    for rows in outcome.cases.values():
        assert set(rows) == expected
        assert all(row["fastest_gflop_per_s"] >= row["gflop_per_s"] > 0 for row in rows.values())
    assert machine.figures()["samples"] == 1 + len(outcome.cases)
