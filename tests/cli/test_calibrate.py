from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import pytest

from mca_perception.cli.main import main
from mca_perception.deploy.bundle import ModelBundle
from tests.support.bundles import write_colour_bundle
from tests.support.datasets import write_pick_set


@pytest.fixture
def mca(monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mca", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle, and picks of which some are identified wrongly."""
    write_pick_set(tmp_path / "picks", 12, wrong=3)
    return write_colour_bundle(tmp_path / "model").path, tmp_path / "picks"


LOOSE = ("--false-accept", 0.4, "--confidence", 0.6)


def test_calibration_is_stored_and_leaves_galleries_valid(mca, folders, tmp_path) -> None:
    model, picks = folders
    before = ModelBundle.open(model).fingerprint
    for options in ((), ("--views", 3), ("--gallery", "all"), ()):
        code, printed, errors = mca(
            "calibrate", "identification", "--data", picks, "--model", model, *LOOSE, *options
        )
        assert code == 0, errors
        assert "threshold" in printed
        assert "true_accept_rate" in printed
    bundle = ModelBundle.open(model)
    assert bundle.fingerprint == before
    stored = bundle.manifest.identification.calibration
    assert [(c.gallery, c.views) for c in stored] == [("all", 1), ("container", 1), ("container", 3)]
    assert all(c.false_accept == 0.4 and c.temperature > 0 for c in stored)
    assert stored[0].calibrated_on == "picks/testset, 12 picks"
    assert "at most 40.0% of unknown ones pass" in (model / "README.md").read_text()

    out = tmp_path / "out"
    code, *_ = mca("eval", "armbench-identification", "--data", picks, "--model", model, "--out", out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert code == 0
    assert metrics["open_set"]["false_accept_rate"] <= 0.4
    assert metrics["open_set"]["stated_false_accept_rate"] == 0.4
    error = {stage: f["expected_calibration_error"] for stage, f in metrics["confidence"].items()}
    assert error["after"] <= error["before"]
    for name in ("reliability.png", "open_set.png", "contact_sheet.png"):
        assert cv2.imread(str(out / name)) is not None
    report = (out / "report.md").read_text()
    assert "unknown, accepted" in report
    assert "12 picks, of which 0 were left out" in report


def test_held_out_picks_and_another_folder(mca, folders, tmp_path) -> None:
    model, picks = folders
    options = ("--held-out", 0.7, "--seed", 3, "--out", tmp_path / "calibrated")
    code, _, errors = mca("calibrate", "identification", "--data", picks, "--model", model, *LOOSE, *options)
    assert code == 0, errors
    assert ModelBundle.open(model).manifest.identification.calibration == ()
    (stored,) = ModelBundle.open(tmp_path / "calibrated").manifest.identification.calibration
    assert "held out 0.7 with seed 3" in stored.calibrated_on


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--false-accept", 0.01), "at least 299 picks"),
        (("--gallery", "some"), "container or all"),
        (("--split", "valset"), "no split 'valset'"),
        (("--false-accept", 0), "--false-accept"),
    ],
)
def test_bad_input_ends_with_two_and_changes_nothing(mca, folders, options, message) -> None:
    model, picks = folders
    before = (model / "manifest.json").read_bytes()
    code, _, errors = mca("calibrate", "identification", "--data", picks, "--model", model, *options)
    assert code == 2
    assert message in errors
    assert (model / "manifest.json").read_bytes() == before
