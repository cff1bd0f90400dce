from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import pytest

from mca_perception.cli.main import main
from mca_perception.deploy.bundle import ModelBundle
from tests.support.bundles import write_colour_bundle
from tests.support.datasets import write_pick_set, write_tote_set


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> ModelBundle:
    return write_colour_bundle(tmp_path_factory.mktemp("models") / "colours")


@pytest.fixture
def mca(monkeypatch, capsys):
    """Run `mca` and return its exit code and what it printed on both streams."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mca", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def test_segmentation_writes_figures_report_detections_and_sheet(mca, bundle, tmp_path: Path) -> None:
    write_tote_set(tmp_path / "totes", 7, hidden=2)
    out = tmp_path / "out"
    code, printed, _ = mca(
        "eval", "armbench-segmentation", "--data", tmp_path / "totes", "--model", bundle.path, "--out", out
    )
    assert code == 0
    assert "mask_map50" in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["model"]["fingerprint"] == bundle.fingerprint
    assert 0.8 < metrics["mask_map50"] < 1
    assert metrics["data"]["synthesised"] is False
    assert len(metrics["data"]["sha256"]) == 64
    assert str(tmp_path) not in (out / "metrics.json").read_text()
    detections = json.loads((out / "detections.json").read_text())
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} == set(detections[0])
    report = (out / "report.md").read_text()
    assert "averages over: Object" in report
    assert "does not find Tote" in report
    assert cv2.imread(str(out / "contact_sheet.png")).shape[1] > 800


def test_segmentation_says_so_when_data_is_synthetic(mca, bundle, tmp_path: Path) -> None:
    write_tote_set(tmp_path, subset="zoomed-out-tote-transfer-set", split="val")
    (tmp_path / "zoomed-out-tote-transfer-set" / "synth.json").write_text('{"seed": 12}')
    code, *_ = mca(
        "eval",
        "armbench-segmentation",
        *("--data", tmp_path, "--model", bundle.path, "--out", tmp_path / "out"),
        *("--subset", "zoomed-out-tote-transfer-set", "--split", "val", "--limit", 2),
    )
    assert code == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["data"]["synthesised"] == {"seed": 12}
    assert metrics["images"] == 2
    assert "**synthesised data**" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("gallery", ["container", "all"])
def test_identification_writes_figures_report_and_sheet(mca, bundle, tmp_path: Path, gallery) -> None:
    write_pick_set(tmp_path / "picks", wrong=2)
    out = tmp_path / "out"
    code, printed, _ = mca(
        "eval",
        "armbench-identification",
        *("--data", tmp_path / "picks", "--model", bundle.path, "--out", out, "--gallery", gallery),
    )
    assert code == 0
    assert "recall@1 0.7500" in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["recall@1"], metrics["queries"], metrics["skipped"]) == (0.75, 8, {})
    assert ("all_references" in metrics) == (gallery == "all")
    assert ("all products" in (out / "report.md").read_text()) == (gallery == "all")
    assert cv2.imread(str(out / "contact_sheet.png")) is not None


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        ("armbench-segmentation", {"--model": "nowhere"}, "nowhere is not a folder"),
        ("armbench-segmentation", {"--data": "nowhere"}, "test.json is missing"),
        ("armbench-segmentation", {"--split": "train"}, "train.json is missing"),
        ("armbench-identification", {"--data": "nowhere"}, "no Picks/"),
        ("armbench-identification", {"--split": "valset"}, "no split 'valset'"),
        ("armbench-identification", {"--gallery": "some"}, "container or all"),
        ("armbench-identification", {"--views": "9"}, "--views"),
    ],
)
def test_bad_input_ends_with_two(mca, bundle, tmp_path: Path, command, changes, message) -> None:
    write_tote_set(tmp_path)
    write_pick_set(tmp_path)
    options = {"--data": tmp_path, "--model": bundle.path, "--out": tmp_path / "out", **changes}
    code, _, errors = mca("eval", command, *(part for option in options.items() for part in option))
    assert code == 2
    assert message in errors
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_altered_model_is_refused(mca, tmp_path: Path) -> None:
    write_tote_set(tmp_path)
    write_colour_bundle(tmp_path / "model")
    with (tmp_path / "model" / "backbone.onnx").open("r+b") as stream:
        stream.write(b"\x00")
    code, _, errors = mca(
        "eval",
        "armbench-segmentation",
        "--data",
        tmp_path,
        "--model",
        tmp_path / "model",
        "--out",
        tmp_path / "out",
    )
    assert code == 2
    assert "was altered" in errors


@pytest.mark.parametrize("command", ["armbench-segmentation", "armbench-identification"])
def test_help_has_an_example(mca, command) -> None:
    code, printed, _ = mca("eval", command, "--help")
    assert code == 0
    assert "Example: mca eval" in printed
