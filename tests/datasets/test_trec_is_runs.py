"""TREC-IS run files: written and read back, and every rule of their format."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mca_perception.datasets.trec_is_runs import TYPES, Format, Run, missing_topics, read_run, write_run
from mca_perception.errors import DatasetError
from tests.support.crisis import run_entry

RUN = Run(
    "my_run-1.0", (run_entry("E-1", 1, 0.25, (3,)), run_entry("E-1", 2, 1.0), run_entry("E-2", 1, 0, (0, 24)))
)
LINE = {
    "topic": "TRECIS-CTIT-H-076",
    "runtag": "myrun",
    "tweet_id": "991855886363541507",
    "priority": 0.67,
    "info_type_scores": [0.5] * TYPES,
    "info_type_labels": [0] * TYPES,
}


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
def test_2021_round_trip(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / name, RUN)
    assert read_run(tmp_path / name) == RUN
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_2019_round_trip_ranks_by_priority(tmp_path: Path) -> None:
    write_run(tmp_path / "run.tsv", RUN, format="2019")
    lines = [line.split("\t") for line in (tmp_path / "run.tsv").read_text().splitlines()]
    assert [line[3] for line in lines] == ["1", "2", "1"]
    assert lines[0][2] == RUN.entries[1].tweet_id
    assert json.loads(lines[2][5]) == ["CallToAction-Donations", "Request-SearchAndRescue"]
    assert sorted(read_run(tmp_path / "run.tsv").entries, key=str) == sorted(RUN.entries, key=str)


def test_missing_topics() -> None:
    assert missing_topics(RUN, ["E-3", "E-1", "E-0"]) == ["E-0", "E-3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"priority": 1.2}, "priority is 1.2; it must be from 0 to 1"),
        ({"priority": "high"}, "priority is 'high'"),
        ({"priority": True}, "priority is True"),
        ({"priority": float("nan")}, "priority is nan"),
        ({"tweet_id": 991855886363541507}, "tweet_id must be a string"),
        ({"tweet_id": "123"}, "17 to 19 digits"),
        ({"topic": ""}, "the topic is empty"),
        ({"runtag": "a tag"}, "run tag 'a tag' must be"),
        ({"runtag": "x" * 21}, "run tag"),
        ({"info_type_scores": [0.5] * 24}, "info_type_scores must be 25 times"),
        ({"info_type_scores": 3}, "info_type_scores must be a list"),
        ({"info_type_scores": [2.0] * TYPES}, "info_type_scores must be 25 times numbers from 0 to 1"),
        ({"info_type_labels": [0.5] * TYPES}, "info_type_labels must be 25 times 0 or 1"),
        ({"note": 1}, "unknown key 'note'"),
    ],
)
def test_rules_of_2021(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "run").write_text(json.dumps(LINE | changes))
    with pytest.raises(DatasetError, match=message):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("key", LINE)
def test_every_key_is_needed(tmp_path: Path, key: str) -> None:
    (tmp_path / "run").write_text(json.dumps({name: value for name, value in LINE.items() if name != key}))
    with pytest.raises(DatasetError, match=f"line 1 lacks {key}"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no answers"),
        (["{"], "line 1 is not JSON"),
        ([json.dumps(LINE)] * 2, "991855886363541507 of TRECIS-CTIT-H-076 is answered twice"),
        (
            [json.dumps(LINE), json.dumps(LINE | {"runtag": "other"})],
            "line 2: run tag 'other', before it was 'myrun'",
        ),
        (["E-1\tQ0\t991855886363541507\t1\t0.5\t[]"], "6 columns instead of 7"),
        (["E-1\tQ0\t991855886363541507\t1\thigh\t[]\ttag"], "priority must be a number"),
        (["E-1\tQ0\t991855886363541507\t1\t0.5\t{}\ttag"], "must be a JSON list of ids"),
        (['E-1\tQ0\t991855886363541507\t1\t0.5\t["News"]\ttag'], "unknown information type 'News'"),
    ],
)
def test_damaged_files(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "run").write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.raises(DatasetError, match=message):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("format", ["2021", "2019"])
@pytest.mark.parametrize(
    "run",
    [
        replace(RUN, tag=""),
        replace(RUN, entries=RUN.entries[:1] * 2),
        replace(RUN, entries=(replace(RUN.entries[0], priority=2.0),)),
    ],
)
def test_a_broken_run_is_not_written(tmp_path: Path, run: Run, format: Format) -> None:
    with pytest.raises(DatasetError):
        write_run(tmp_path / "run", run, format=format)
    assert not list(tmp_path.iterdir())
