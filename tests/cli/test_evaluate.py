from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import pytest

from mca_perception.cli.main import main
from mca_perception.deploy.bundle import ModelBundle
from tests.support.bundles import write_colour_bundle, write_two_headed_bundle
from tests.support.datasets import write_pick_set, write_tote_set
from tests.support.detections import by_hand


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


def read(path: Path):
    return json.loads(path.read_text())


def test_segmentation_writes_figures_report_detections_and_pictures(mca, bundle, tmp_path: Path) -> None:
    write_tote_set(tmp_path / "totes", 7, hidden=2)
    out = tmp_path / "out"
    code, printed, _ = mca(
        "eval", "armbench-segmentation", "--data", tmp_path / "totes", "--model", bundle.path, "--out", out
    )
    assert code == 0
    assert "Object only: mask_map50 0." in printed
    metrics = read(out / "metrics.json")
    assert metrics["model"] == {
        "name": "colours",
        "version": "1",
        "fingerprint": bundle.fingerprint,
        "head": "edge",
    }
    assert 0.8 < metrics["object_only"]["mask_map50"] < 1
    assert metrics["data"]["synthesised"] is False
    assert (metrics["data"]["subset"], metrics["data"]["split"]) == ("mix-object-tote", "test")
    assert len(metrics["data"]["sha256"]) == 64
    assert "subsets" not in metrics
    assert str(tmp_path) not in (out / "metrics.json").read_text()
    detections = read(out / "detections.json")
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} == set(detections[0])
    report = (out / "report.md").read_text()
    assert "does not know Tote, which counts as 0" in report
    for picture in ("average_precision_by_count.png", "precision_recall.png", "contact_sheet.jpg"):
        assert f"]({picture})" in report
        assert cv2.imread(str(out / picture)).shape[1] > 800
    assert not (out / "ground_truth.json").exists()


def test_written_detections_give_the_written_figures(mca, bundle, tmp_path: Path) -> None:
    """What a reader does who does not trust the report: pycocotools on the two files."""
    write_tote_set(tmp_path / "totes", 8, hidden=3)
    out = tmp_path / "out"
    mca("eval", "armbench-segmentation", "--data", tmp_path / "totes", "--model", bundle.path, "--out", out)
    metrics = read(out / "metrics.json")
    truth = read(tmp_path / "totes" / "mix-object-tote" / "test.json")
    for kind, prefix in (("segm", "mask"), ("bbox", "box")):
        for part, categories in ((metrics, None), (metrics["object_only"], [1])):
            expected = by_hand(truth, read(out / "detections.json"), kind, categories)
            found = [part[f"{prefix}_{name}"] for name in ("map", "map50", "map75")]
            assert found == pytest.approx(expected, abs=1e-12)


def test_ground_truth_is_written_when_the_file_was_not_used_as_it_is(mca, bundle, tmp_path: Path) -> None:
    write_tote_set(tmp_path / "totes", 4)
    path = tmp_path / "totes" / "mix-object-tote" / "test.json"
    document = read(path)
    document["annotations"][0]["segmentation"] = [[-50, -50, 400, -50, 400, 400, -50, 400]]
    document["annotations"][1]["segmentation"] = []
    document["images"][3]["file_name"] = "absent.png"
    path.write_text(json.dumps(document))
    out = tmp_path / "out"
    code, *_ = mca(
        "eval", "armbench-segmentation", "--data", tmp_path / "totes", "--model", bundle.path, "--out", out
    )
    assert code == 0
    metrics = read(out / "metrics.json")
    assert (
        metrics["skipped"]["image file missing"] == metrics["skipped"]["annotation without segmentation"] == 1
    )
    assert metrics["corrected"] == {"polygon clipped to the image": 1}
    report = (out / "report.md").read_text()
    for reason, count in (*metrics["skipped"].items(), *metrics["corrected"].items()):
        assert f"| {reason} | {count} |" in report
    truth = read(out / "ground_truth.json")
    assert len(truth["images"]) == 3
    expected = by_hand(truth, read(out / "detections.json"), "segm")[1]
    assert metrics["mask_map50"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "options",
    [
        ["--subset", "all"],
        ["--subset", "mix-object-tote", "--subset", "same-object-transfer-set"],
    ],
)
def test_several_subsets_make_one_report(mca, bundle, tmp_path: Path, options) -> None:
    names = ["mix-object-tote", "same-object-transfer-set"]
    for name, hidden in zip(names, (0, 2), strict=True):
        write_tote_set(tmp_path / "totes", 3, subset=name, hidden=hidden)
    out = tmp_path / "out"
    data = ("--data", tmp_path / "totes", "--model", bundle.path, "--out", out)
    code, printed, _ = mca("eval", "armbench-segmentation", *data, *options)
    assert code == 0
    assert [line.split()[0] for line in printed.splitlines()] == names
    metrics = read(out / "metrics.json")
    assert list(metrics["subsets"]) == names
    assert metrics["mask_map50"] == metrics["subsets"][names[0]]["mask_map50"]
    found = [metrics["subsets"][name]["object_only"]["mask_map50"] for name in names]
    assert found[0] == pytest.approx(1)
    assert found[1] < 1
    report = (out / "report.md").read_text()
    for name in names:
        assert f"## {name}" in report
        assert f"]({name}/contact_sheet.jpg)" in report
        assert {path.name for path in (out / name).iterdir()} == {
            "contact_sheet.jpg",
            "detections.json",
            "precision_recall.png",
        }


def test_report_without_matplotlib_says_so(mca, bundle, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mca_perception.cli.plots.find_spec", lambda _: None)
    write_tote_set(tmp_path / "totes", 2)
    out = tmp_path / "out"
    code, *_ = mca(
        "eval", "armbench-segmentation", "--data", tmp_path / "totes", "--model", bundle.path, "--out", out
    )
    assert code == 0
    report = (out / "report.md").read_text()
    assert "matplotlib is not installed" in report
    assert ".png" not in report
    assert not list(out.glob("*.png"))


@pytest.mark.parametrize(("head", "code"), [("edge", 0), ("cascade", 2)])
def test_head_that_the_bundle_lacks_is_refused(mca, bundle, tmp_path: Path, head, code) -> None:
    write_tote_set(tmp_path / "totes", 1)
    data = ("--data", tmp_path / "totes", "--model", bundle.path, "--out", tmp_path / "out")
    ended, _, errors = mca("eval", "armbench-segmentation", *data, "--head", head)
    assert ended == code
    assert ("holds the edge head, not the cascade head" in errors) == (code == 2)


@pytest.mark.parametrize(("options", "used"), [((), "edge"), (("--head", "cascade"), "cascade")])
def test_head_of_two_is_chosen_and_named(mca, tmp_path: Path, options, used) -> None:
    write_tote_set(tmp_path / "totes", 2)
    model = write_two_headed_bundle(tmp_path / "model").path
    data = ("--data", tmp_path / "totes", "--model", model, "--out", tmp_path / "out")
    code, *_ = mca("eval", "armbench-segmentation", *data, *options)
    assert code == 0
    metrics = read(tmp_path / "out" / "metrics.json")
    assert metrics["model"]["head"] == used
    assert metrics["operating_point"]["score_threshold"] == (0.6 if used == "cascade" else 0.3)
    assert (metrics["object_only"]["mask_map50"] > 0.9) == (used == "edge")
    assert f"with its {used} head" in (tmp_path / "out" / "report.md").read_text()


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
    assert ("container" in metrics) == (gallery == "all")
    assert metrics["mean_candidates"] == {"container": 3, "all": 6}[gallery]
    assert ("all products" in (out / "report.md").read_text()) == (gallery == "all")
    assert cv2.imread(str(out / "contact_sheet.png")) is not None


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        ("armbench-segmentation", {"--model": "nowhere"}, "nowhere is not a folder"),
        ("armbench-segmentation", {"--data": "nowhere"}, "test.json is missing"),
        ("armbench-segmentation", {"--split": "train"}, "train.json is missing"),
        ("armbench-segmentation", {"--subset": "all", "--split": "train"}, "none of mix-object-tote"),
        ("armbench-segmentation", {"--head": "other"}, "--head"),
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


def test_missing_one_of_several_subsets_is_refused_before_work(mca, bundle, tmp_path: Path) -> None:
    write_tote_set(tmp_path / "totes", 1)
    data = ("--data", tmp_path / "totes", "--model", bundle.path, "--out", tmp_path / "out")
    subsets = ("--subset", "mix-object-tote", "--subset", "same-object-transfer-set")
    code, _, errors = mca("eval", "armbench-segmentation", *data, *subsets)
    assert code == 2
    assert "leave out --subset same-object-transfer-set" in errors
    assert not (tmp_path / "out").exists()


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
