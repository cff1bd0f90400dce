from __future__ import annotations

from pathlib import Path

import pytest

from mca_perception.datasets.atomic import (
    documents_of,
    pool_of,
    read_documents,
    read_image_ids,
    read_qrels,
    split_of_image,
    write_run,
)
from mca_perception.errors import DatasetError
from tests.support.retrieval import write_atomic, write_colour_photos


@pytest.fixture(scope="module")
def atomic(tmp_path_factory) -> Path:
    pytest.importorskip("pyarrow")
    root = tmp_path_factory.mktemp("atomic")
    return write_atomic(root / "atomic", write_colour_photos(root / "photos"))


def test_texts_have_the_fields_of_documents(atomic: Path) -> None:
    documents = documents_of(atomic, {"projected-000", "absent"})
    assert documents == {
        "projected-000": {
            "page_title": "Red",
            "section_title": "Introduction",
            "hierarchy": ("Colours", "Red"),
            "section_description": "A red picture of the sea.",
            "page_description": "About colours.",
        }
    }
    with pytest.raises(DatasetError, match="none of the 1 texts"):
        documents_of(atomic, {"absent"})


def test_qrels_pools_and_splits(atomic: Path) -> None:
    qrels = read_qrels(atomic, "validation")
    assert qrels["projected-000"] == {"red/0.png": 1, "red/1.png": 1}
    assert len(pool_of(atomic, "small", "validation") or ()) == 12
    assert len(pool_of(atomic, "base", "validation") or ()) == 18
    assert pool_of(atomic, "large", "validation") is None
    assert split_of_image(atomic)["red/2.png"] == "train"
    assert sum(1 for _ in read_image_ids(atomic)) == 19
    with pytest.raises(DatasetError, match="small, base or large"):
        pool_of(atomic, "huge", "validation")
    with pytest.raises(DatasetError, match="no qrels of split 'dev'"):
        read_qrels(atomic, "dev")


def test_qrels_as_text(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.qrels").write_text("t1 Q0 i1 1\n\nt1 Q0 i2 0\n")
    assert read_qrels(tmp_path, "test") == {"t1": {"i1": 1, "i2": 0}}
    (tmp_path / "qrels" / "test.qrels").write_text("t1 i1 1\n")
    with pytest.raises(DatasetError, match="line 1 is not"):
        read_qrels(tmp_path, "test")


def test_plain_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\n\nsecond line\n")
    assert list(read_documents(tmp_path / "a.txt")) == [
        ("1", {"text": "first"}),
        ("3", {"text": "second line"}),
    ]
    (tmp_path / "a.jsonl").write_text('{"id": 7, "page_title": "T", "hierachy": ["a", ""]}\n')
    assert list(read_documents(tmp_path / "a.jsonl")) == [("7", {"page_title": "T", "hierarchy": ("a",)})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{broken\n", "line 1 is not JSON"),
        (b"[1]\n", "no JSON object"),
        (b"[" * 100_000 + b"\n", "not JSON"),
    ],
)
def test_lines_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        list(read_documents(tmp_path / "a.jsonl"))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DatasetError, match="cannot be read"):
        list(read_documents(tmp_path / "absent.jsonl"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DatasetError, match="as Parquet"):
        list(read_documents(tmp_path / "bad.parquet"))


def test_a_run_is_what_trec_eval_reads(tmp_path: Path) -> None:
    write_run(tmp_path / "run.txt", {"t": [(f"i{i}", 1 - i / 2000) for i in range(1500)]}, "name")
    lines = (tmp_path / "run.txt").read_text().splitlines()
    assert len(lines) == 1000
    assert lines[1] == "t Q0 i1 2 0.999500 name"
    write_run(tmp_path / "run.txt", {"t": [("b", 0.5), ("a", 0.5), ("c", 0.5)]})
    scores = [float(line.split()[4]) for line in (tmp_path / "run.txt").read_text().splitlines()]
    assert scores[0] > scores[1] > scores[2]
