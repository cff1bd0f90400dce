from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mca_perception.cli.main import main
from tests.support.bundles import write_colour_bundle
from tests.support.labelled_images import write_colour_classes


@pytest.fixture
def evaluate(monkeypatch, capsys, tmp_path):
    """Run `mca eval embeddings` on a bundle that embeds the mean colour."""
    bundle = write_colour_bundle(tmp_path / "colours").path

    def run(data: Path, *arguments: object) -> tuple[int, str]:
        options = ["eval", "embeddings", "--data", data, "--model", bundle, "--out", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["mca", *map(str, [*options, *arguments])])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), "".join(capsys.readouterr())

    return run


def test_colours_are_told_apart_and_a_bundle_equals_itself(evaluate, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write_colour_classes(tmp_path / "data", per_class=7)
    code, printed = evaluate(tmp_path / "data", "--before", tmp_path / "colours")
    assert code == 0, printed
    assert "knn_top1 1.0000" in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["figures"]) == {"after", "before"}
    assert metrics["figures"]["after"] == metrics["figures"]["before"]
    found = metrics["figures"]["after"]["embedding"]
    assert found["auroc"] > 0.99
    assert found["margin"] > 0
    assert found["alignment"] == pytest.approx(2 - 2 * found["mean_positive"], abs=1e-4)
    assert found["isotropy"] == found["isotropy_raw"]  # embeddings have length 1 already
    assert found["5way_5shot"] == 1
    assert metrics["change"]["cka_embedding"] == pytest.approx(1)
    assert metrics["change"]["shared_neighbours"] == 1
    report = (tmp_path / "out" / "report.md").read_text()
    for name in ("cosines.png", "tsne.png"):
        drawn = (tmp_path / "out" / name).is_file()
        assert drawn == (f"]({name})" in report)


def test_classes_of_one_image_are_refused(evaluate, tmp_path: Path) -> None:
    write_colour_classes(tmp_path / "data", per_class=1)
    code, printed = evaluate(tmp_path / "data")
    assert code == 2
    assert "at least 2 classes, one of them with 2 images" in printed
