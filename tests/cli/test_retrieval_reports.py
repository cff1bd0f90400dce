"""`mca eval grocery-retrieval`, `atomic` and `image-text` on small data with a bundle that knows colours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mca_perception.cli.main import main
from tests.support.retrieval import WORDS, write_atomic, write_colour_encoder, write_colour_photos


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_colour_encoder(tmp_path_factory.mktemp("models") / "colours").path


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_colour_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def mca_eval(monkeypatch, tmp_path):
    def run(*arguments: object) -> tuple[int, dict]:
        command = ["mca", "eval", *map(str, arguments), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            main()
        file = tmp_path / "out" / "metrics.json"
        return int(end.value.code or 0), json.loads(file.read_text()) if file.is_file() else {}

    return run


@pytest.fixture
def grocery(photos: Path, tmp_path: Path) -> Path:
    """The colours in the layout of the Grocery Store data set; red's photos are labelled green and the reverse."""
    folder = tmp_path / "grocery"
    rows = [
        "Class Name (str),Class ID (int),Coarse (str),Coarse ID (int),Iconic Image (str),Description (str)"
    ]
    folder.mkdir()
    (folder / "photos").symlink_to(photos)
    lists: dict[str, list[str]] = {"train": [], "val": []}
    shown = {"red": "green", "green": "red"}
    for number, word in enumerate(WORDS):
        (folder / f"{word}.txt").write_text(f"a {word} picture of the sea")
        (folder / f"{word}.png").write_bytes((photos / word / "0.png").read_bytes())
        rows.append(f"{word},{number},colour,0,/{word}.png,/{word}.txt")
        for photo in range(3):
            name = f"{shown.get(word, word)}-{photo}.png"
            (folder / name).write_bytes((photos / shown.get(word, word) / f"{photo}.png").read_bytes())
            lists["train" if photo == 2 else "val"].append(f"{name}, {number}, 0")
    (folder / "classes.csv").write_text("\n".join(rows))
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


def test_grocery_retrieval(mca_eval, grocery: Path, bundle: Path, tmp_path: Path) -> None:
    code, metrics = mca_eval("grocery-retrieval", "--data", grocery, "--split", "val", "--model", bundle)
    assert code == 0
    assert (metrics["task"], metrics["topics"], metrics["images"]) == ("grocery-retrieval", 6, 12)
    assert 4 / 6 <= metrics["mrr@10"] < 1  # two of six colours are labelled wrong
    assert metrics["recall@100"] == 1
    assert metrics["full_scans"] == 6
    assert set(metrics["latency_ms"]["score"]) == {"p50", "p95"}
    assert "mrr@10" in (tmp_path / "out" / "report.md").read_text()
    code, metrics = mca_eval(
        "grocery-retrieval",
        "--data",
        grocery,
        "--split",
        "val",
        "--model",
        bundle,
        "--per-entity",
        3,
        "--no-summary",
    )
    assert code == 0
    assert metrics["candidates"] < 12
    assert metrics["candidate_recall"] < 1
    assert metrics["settings"]["summary"] is False


def test_atomic_equals_ir_measures(mca_eval, photos: Path, bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("ir_measures")
    data = write_atomic(tmp_path / "atomic", photos)
    code, metrics = mca_eval(
        "atomic", "--data", data, "--model", bundle, "--split", "validation", "--pool", "large"
    )
    assert code == 0
    assert (metrics["images"], metrics["topics"]) == (18, 6)
    assert metrics["skipped"] == {"image not readable": 1}
    theirs = metrics["settings"]["ir_measures"]
    for ours, name in (
        ("mrr@10", "RR@10"),
        ("recall@10", "R@10"),
        ("recall@1000", "R@1000"),
        ("ndcg@10", "nDCG@10"),
    ):
        assert metrics[ours] == pytest.approx(theirs[name], abs=1e-9)
    lines = (tmp_path / "out" / "run.txt").read_text().splitlines()
    assert len(lines) == 6 * 18
    assert lines[0].split()[:2] == ["projected-000", "Q0"]
    code, small = mca_eval("atomic", "--data", data, "--model", bundle, "--pool", "small", "--per-entity", 4)
    assert code == 0
    assert small["images"] == 12
    assert small["mrr@10"] == 1


def test_image_text(mca_eval, photos: Path, bundle: Path, tmp_path: Path) -> None:
    images = [
        {"filepath": word, "filename": "0.png", "split": "test", "sentences": [{"raw": f"a {word} sea"}] * 2}
        for word in WORDS
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    code, metrics = mca_eval(
        "image-text", "--data", tmp_path / "dataset.json", "--images", photos, "--model", bundle
    )
    assert code == 0
    assert [metrics[name] for name in ("ir@1", "tr@1", "images", "captions")] == [1, 1, 6, 12]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("grocery-retrieval", ("--data", "nowhere")),
        ("atomic", ("--data", "nowhere")),
        ("image-text", ("--data", "nowhere.json")),
    ],
)
def test_missing_data_ends_in_exit_code_2(mca_eval, bundle: Path, command: str, options) -> None:
    assert mca_eval(command, *options, "--model", bundle)[0] == 2
