"""The crisis commands as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mca_perception.cli import crisis, evaluate
from mca_perception.datasets.trec_is_runs import Run, write_run
from mca_perception.errors import BundleError, DatasetError, PostError
from tests.support.crisis import label_event, row, run_entry, write_crisismmd, write_split

MODEL = "models/crisis"


def call(app: Any, *arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def test_classify_one_post() -> None:
    answer = json.loads(call(crisis.app, "classify", "--text", "Bridge collapsed, people trapped"))
    assert answer["informative"]["label"] == "informative"
    assert answer["uncalibrated"] is True


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], PostError, "give either"),
        (["--text", "a", "--jsonl", "b"], PostError, "give either"),
        (["--text", "  "], PostError, "the post is empty"),
        (["--text", "a", "--image", "absent.jpg"], PostError, "absent.jpg cannot be read"),
        (["--text", "a", *["--image", "x"] * 9], PostError, "at most 8"),
        (["--jsonl", "absent.jsonl"], DatasetError, "absent.jsonl cannot be read"),
        (["--text", "a", "--model", "absent"], BundleError, "not a folder"),
        (["--jsonl", "README.md", "--out", "absent/out.jsonl"], PostError, "does not exist"),
    ],
)
def test_bad_input_is_named(arguments: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(crisis.app, "classify", *arguments)


def test_classify_a_file(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"flood {i}", "post_id": str(i)}) for i in range(600)]
    (tmp_path / "posts.jsonl").write_text("\n".join([*lines, "{", '{"post_id": "empty"}']))
    call(crisis.app, "classify", "--jsonl", tmp_path / "posts.jsonl", "--out", tmp_path / "out.jsonl")
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["line"] for answer in answers] == list(range(1, 603))
    assert [answer["post_id"] for answer in answers[:600]] == [str(i) for i in range(600)]
    assert "not JSON" in answers[600]["error"]
    assert "the post is empty" in answers[601]["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "posts.jsonl"]


def test_a_file_of_bad_lines_alone_fails(tmp_path: Path) -> None:
    (tmp_path / "posts.jsonl").write_text("{\n{\n")
    assert len(call(crisis.app, "classify", "--jsonl", tmp_path / "posts.jsonl", code=1).splitlines()) == 2


def test_data_check_reports_counts_and_leaks(tmp_path: Path) -> None:
    write_crisismmd(tmp_path, rows=10)
    figures = json.loads(call(crisis.app, "data", "--data", tmp_path, "--json"))
    assert [entry["rows"] for entry in figures["files"]] == [10, 5, 5, 10, 5, 5]
    assert figures["leaks_within_a_task"] == []
    assert figures["files"][0]["missing_images"] == 10
    assert "rows: 10 instead of 9601" in figures["files"][0]["differs_from_published"]
    assert "no tweet is in two splits of one task" in call(crisis.app, "data", "--data", tmp_path)
    write_split(tmp_path, "informative", "test", [row(0, "informative")])
    assert "LEAK: 1 tweets of informative test are in informative train" in call(
        crisis.app, "data", "--data", tmp_path, code=1
    )


def test_data_check_of_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none of the files"):
        call(crisis.app, "data", "--data", tmp_path)


def test_evaluation_writes_everything(tmp_path: Path) -> None:
    data = write_crisismmd(tmp_path / "data", rows=20)
    common = ("crisismmd", "--data", data, "--task", "humanitarian", "--split", "test", "--model", MODEL)
    call(evaluate.app, *common, "--out", tmp_path / "one")
    call(evaluate.app, *common, "--out", tmp_path / "two", "--baseline", tmp_path / "one")
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert metrics["n"] == 10
    assert {"weighted_f1", "macro_f1", "accuracy", "calibration", "events", "against_baseline"} <= set(
        metrics
    )
    assert metrics["weighted_recall"] == pytest.approx(metrics["accuracy"])
    names = {"metrics.json", "report.md", "predictions.csv", "confusion_matrix.png", "reliability.png"}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    assert "paired bootstrap" in (tmp_path / "two" / "report.md").read_text()


def test_trec_is_files(tmp_path: Path) -> None:
    labels, run = tmp_path / "labels.json", tmp_path / "run.jsonl.gz"
    events = [
        label_event("E-1", [(1, ("News",), "High"), (2, ("Weather",), "Low")]),
        label_event("E-2", [(1, (), "Low")]),
    ]
    labels.write_text(json.dumps({"events": events}))
    write_run(run, Run("tag", (run_entry("E-1", 1, 1.0, (15,)), run_entry("E-1", 2, 0.1, (21,)))))
    assert json.loads(call(crisis.app, "labels", labels, "--json"))["tweets"] == 3
    assert json.loads(call(crisis.app, "run-file", run, "--json"))["answers"] == 2
    checked = json.loads(call(crisis.app, "run-file", run, "--labels", labels, "--json", code=1))
    assert checked["missing_events"] == ["E-2"]
    arguments = ("trec-is", "--labels", labels, "--run", run, "--out", tmp_path / "out")
    with pytest.raises(DatasetError, match=r"no answer for 1 topic.*E-2"):
        call(evaluate.app, *arguments)
    call(evaluate.app, *arguments, "--allow-missing-topics")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["alert_worth_h"] == pytest.approx(1.0)
    assert (metrics["n"], metrics["without_answer"]) == (3, 1)
