"""TREC-IS: ontology, three generations of label files, tweets, and damaged files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mca_perception.datasets import trec_is
from mca_perception.datasets.trec_is import (
    ACTIONABLE,
    INFORMATION_TYPES,
    REDUCED,
    read_labels,
    read_ontology,
    read_tweets,
)
from mca_perception.errors import DatasetError
from tests.support.crisis import label_event

TWEET = "900000000000000001"
NEWS = INFORMATION_TYPES.index("Report-News")
RESCUE = INFORMATION_TYPES.index("Request-SearchAndRescue")


def write(path: Path, content: Any, *, zipped: bool = False) -> Path:
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


def event(*tweets: Any, topic: str = "TRECIS-CTIT-H-Test-029") -> dict[str, Any]:
    return label_event(topic, tweets)


def test_ontology_is_in_the_evaluators_order() -> None:
    assert len(INFORMATION_TYPES) == 25
    assert tuple(sorted(INFORMATION_TYPES, key=str.lower)) == INFORMATION_TYPES
    assert {INFORMATION_TYPES[i] for i in ACTIONABLE} == {
        "CallToAction-MovePeople",
        "Report-EmergingThreats",
        "Report-NewSubEvent",
        "Report-ServiceAvailable",
        "Request-GoodsServices",
        "Request-SearchAndRescue",
    }
    assert len(REDUCED) == 11
    assert ACTIONABLE < REDUCED


def test_ontology_file(tmp_path: Path) -> None:
    names = reversed(INFORMATION_TYPES)
    path = write(tmp_path / "types.json", {"informationTypes": [{"id": name, "desc": ""} for name in names]})
    assert read_ontology(path) == INFORMATION_TYPES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no list 'informationTypes'"),
        ({"informationTypes": [{"id": "Report-PastNews"}]}, "unknown information type 'Report-PastNews'"),
        ({"informationTypes": [{"id": "Report-News"}] * 2}, "twice"),
        ({"informationTypes": [3]}, "unknown information type 'None'"),
    ],
)
def test_damaged_ontology(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_ontology(write(tmp_path / "types.json", content))


FIRST = {"events": [event((1, ("News", "SearchAndRescue"), "High"), topic="TRECIS-CTIT-H-Test-029A")]}
SECOND = {
    "annotator": {
        "eventsAnnotated": [
            {"identifier": "TRECIS-CTIT-H-Test-029", "name": "", "tweets": FIRST["events"][0]["tweets"]}
        ]
    }
}
MERGED = {
    "events": [
        {
            "trecisid": "TRECIS-CTIT-H-Test-029",
            "eventid": "flood",
            "tweets": [
                {
                    "postID": TWEET,
                    "postText": "help",
                    "postPriority": "High",
                    "postCategories": ["News", "SearchAndRescue"],
                }
            ],
        }
    ]
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("content", "text"), [(FIRST, None), (SECOND, None), (MERGED, "help")])
def test_generations_of_label_files(tmp_path: Path, content: Any, text: str | None, zipped: bool) -> None:
    (tweet,) = read_labels(write(tmp_path / "labels.json", content, zipped=zipped)).tweets
    assert (tweet.topic, tweet.tweet_id, tweet.text) == ("TRECIS-CTIT-H-Test-029", TWEET, text)
    assert (tweet.types, tweet.priority) == ({NEWS, RESCUE}, "High")


@pytest.mark.parametrize("priority", [None, "None", ""])
def test_missing_priorities(tmp_path: Path, priority: Any) -> None:
    file = read_labels(write(tmp_path / "labels.json", {"events": [event((1, ("News",), priority))]}))
    assert file.tweets[0].priority is None
    assert file.priority_counts() == {"Low": 0, "Medium": 0, "High": 0, "Critical": 0, "None": 1}


def test_counts(tmp_path: Path) -> None:
    tweets = (
        (1, ("News",), "Low"),
        (2, ("News", "Weather"), "Critical"),
        (2, ("News", "Weather"), "Critical"),
    )
    file = read_labels(write(tmp_path / "labels.json", {"events": [event(*tweets)]}))
    counts = file.type_counts()
    assert (counts["Report-News"], counts["Report-Weather"], sum(counts.values())) == (2, 1, 3)
    assert file.topics == ("TRECIS-CTIT-H-Test-029",)
    assert sum(file.skipped.values()) == 1


def test_unknown_types_can_be_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.json", {"events": [event((1, ("KnownAlready", "News"), "Low"))]})
    file = read_labels(path, skip_unknown_types=True)
    assert file.tweets[0].types == {NEWS}
    assert dict(file.skipped) == {"unknown information type KnownAlready": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "neither 'events' nor 'annotator'"),
        ({"events": []}, "no labelled tweets"),
        ({"events": [{"tweets": []}]}, "no id"),
        ({"events": [{"eventid": "e", "tweets": [3]}]}, "a tweet of e is no object"),
        ({"events": [{"eventid": "e", "tweets": [{"categories": []}]}]}, "postID ''"),
        (
            {"events": [{"eventid": "e", "tweets": [{"postID": 1, "categories": "News"}]}]},
            "no list of categories",
        ),
        (
            {"events": [event((1, ("KnownAlready",), "Low"))]},
            "tweet 9.*unknown information type 'KnownAlready'",
        ),
        ({"events": [event((1, (["News"],), "Low"))]}, "unknown information type"),
        ({"events": [event((1, (), "Urgent"))]}, "unknown priority 'Urgent'"),
        (
            {"events": [event((1, ("News",), "Low"), (1, ("News",), "High"))]},
            "labelled twice and differently",
        ),
    ],
)
def test_damaged_labels(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_labels(write(tmp_path / "labels.json", content))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not JSON"),
        (b"\x1f\x8bbroken", "cannot be read"),
        (gzip.compress(b"{}", mtime=0)[:-4], "cannot be read"),
    ],
)
def test_files_that_are_not_json(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "labels.json").write_bytes(data)
    with pytest.raises(DatasetError, match=message):
        read_labels(tmp_path / "labels.json")


def test_unpacked_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "labels.json.gz"
    path.write_bytes(gzip.compress(b" " * 100_000))
    monkeypatch.setattr(trec_is, "MAX_BYTES", 10_000)
    with pytest.raises(DatasetError, match="larger than 10,000 bytes"):
        read_labels(path)
    with pytest.raises(DatasetError, match="10,000 in all"):
        read_tweets(path)


def test_tweets(tmp_path: Path) -> None:
    lines = [
        {"allProperties": {"id": TWEET, "text": "first"}},
        {"id": 2, "text": "plain"},
        {"id": TWEET, "text": "again"},
        {"id": 3},
        {"allProperties": 4},
    ]
    path = tmp_path / "tweets.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join([*map(json.dumps, lines), "{"]).encode()))
    texts, skipped = read_tweets(path)
    assert texts == {TWEET: "first", "2": "plain"}
    assert skipped == {"tweet that came before": 1, "line without id or text": 2, "line that is not JSON": 1}


def test_no_tweets(tmp_path: Path) -> None:
    (tmp_path / "tweets").write_text("{}\n")
    with pytest.raises(DatasetError, match="holds no tweets"):
        read_tweets(tmp_path / "tweets")
