from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import cv2
import pytest

from mca_perception.cli.main import main
from tests.support.bundles import write_colour_bundle
from tests.support.labelled_images import write_colour_classes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_colour_bundle(tmp_path_factory.mktemp("models") / "colours").path


@pytest.fixture
def audit(monkeypatch, capsys, bundle):
    """Run `mca labels audit` and return its exit code and both streams."""

    def run(data: Path, out: Path, *arguments: object) -> tuple[int, str]:
        options = ["labels", "audit", "--data", data, "--model", bundle, "--out", out, *arguments]
        monkeypatch.setattr(sys, "argv", ["mca", *map(str, options)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), "".join(capsys.readouterr())

    return run


def test_a_misplaced_image_heads_the_list(audit, tmp_path: Path) -> None:
    write_colour_classes(tmp_path / "data")
    (tmp_path / "data" / "red" / "3.png").rename(tmp_path / "data" / "cyan" / "wrong.png")
    (tmp_path / "data" / "green" / "broken.png").write_bytes(b"no image")
    code, printed = audit(tmp_path / "data", tmp_path / "out")
    assert code == 0, printed
    rows = list(csv.DictReader((tmp_path / "out" / "suspicious.csv").read_text().splitlines()))
    assert (rows[0]["path"], rows[0]["given"], rows[0]["suggested"]) == ("cyan/wrong.png", "cyan", "red")
    assert float(rows[0]["score"]) > 0.5
    assert len(rows) == 4  # a tenth of 36
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["skipped"] == {"image that cannot be read": 1}
    assert metrics["contradicted"] == 1
    assert metrics["data"]["images"] == 36
    assert "cyan/wrong.png" in (tmp_path / "out" / "report.md").read_text()
    assert cv2.imread(str(tmp_path / "out" / "contact_sheet.png")).shape[1] > 1000


def test_injected_errors_are_recorded_and_found(audit, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_colour_classes(tmp_path / "data" / "train", per_class=10)
    code, printed = audit(
        tmp_path / "data", tmp_path / "out", "--inject", 0.05, "--seed", 1, "--features", "embedding"
    )
    assert code == 0, printed
    assert "100 % of the injected errors" in printed
    injected = list(csv.DictReader((tmp_path / "out" / "injected.csv").read_text().splitlines()))
    assert len(injected) == 3
    assert all(row["true"] != row["given"] and row["true"] in row["path"] for row in injected)
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())["injected"]
    assert figures["recall_at_tenth"] == 1
    assert figures["suggestion_is_true_label"] == 1
    assert (tmp_path / "out" / "detection.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "give a folder with a folder of images for each"), (("--split", "val"), "has no folder val")],
)
def test_a_folder_without_classes_is_named(audit, tmp_path: Path, arguments, message) -> None:
    (tmp_path / "data").mkdir()
    code, printed = audit(tmp_path / "data", tmp_path / "out", *arguments)
    assert code == 2
    assert message in printed
