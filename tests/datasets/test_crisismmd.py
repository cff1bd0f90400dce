"""CrisisMMD: columns, labels, merging, leakage, and every damaged file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mca_perception.datasets import crisismmd
from mca_perception.datasets.crisismmd import (
    LABELS,
    MERGED,
    SPLITS,
    TASKS,
    first_of_each_tweet,
    read_split,
)
from mca_perception.datasets.crisismmd_checks import (
    PUBLISHED,
    describe,
    differences,
    shared_texts,
    shared_tweets,
    size_of,
    without_held_out,
)
from mca_perception.errors import DatasetError
from tests.support.crisis import row, write_crisismmd, write_split
from tests.support.datasets import write_image


def test_columns_become_posts(tmp_path: Path) -> None:
    text = 'A "stray quote and caf\N{LATIN SMALL LETTER E WITH ACUTE}\N{LINE SEPARATOR}on one line'
    entries = [row(1, "informative", text), row(2, "not_informative")]
    write_split(tmp_path, "informative", "dev", entries, end="\r\n")
    split = read_split(tmp_path, "informative", "dev")
    first, second = split.posts
    assert (first.text, first.label, first.event) == (text, 0, "hurricane_irma")
    assert (second.label, second.image_id) == (1, f"{second.tweet_id}_0")
    assert split.class_counts() == {"informative": 1, "not_informative": 1}
    assert split.labels.tolist() == [0, 1]
    assert not split.corrected


@pytest.mark.parametrize(("fine", "merged"), MERGED.items())
def test_fine_labels_are_merged(tmp_path: Path, fine: str, merged: str) -> None:
    write_split(tmp_path, "humanitarian", "dev", [row(1, merged, label=fine)])
    (post,) = read_split(tmp_path, "humanitarian", "dev").posts
    assert LABELS["humanitarian"][post.label] == merged
    assert post.fine_label == fine


def test_class_order_is_alphabetical() -> None:
    assert all(names == tuple(sorted(names)) for names in LABELS.values())
    assert set(MERGED.values()) == set(LABELS["humanitarian"])


def test_all_pairs_may_disagree(tmp_path: Path) -> None:
    entry = row(1, "informative", label_image="not_informative", label_text_image="Negative")
    write_split(tmp_path, "informative", "dev", [entry], agreed=False)
    (post,) = read_split(tmp_path, "informative", "dev", agreed=False).posts
    assert (post.label, post.image_label, post.agrees) == (0, 1, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label_text": "informativ"},
            "line 3: unknown label_text 'informativ'; it must be one of informative",
        ),
        ({"label_image": ""}, "unknown label_image ''"),
        ({"label": "relevant"}, "unknown label 'relevant'"),
        ({"label_text_image": "Maybe"}, "unknown label_text_image"),
        ({"tweet_id": ""}, "tweet_id or image_id is empty"),
        ({"tweet_text": "two\tparts"}, "line 3: 10 columns instead of 9"),
        ({"label_image": "not_informative", "label_text_image": "Negative"}, "labels differ"),
        ({"image_id": row(1, "informative")["image_id"]}, "line 3: image_id .* is in line 2 already"),
    ],
)
def test_damaged_rows_name_their_line(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    write_split(tmp_path, "informative", "dev", [row(1, "informative"), row(2, "informative", **changes)])
    with pytest.raises(DatasetError, match=message):
        read_split(tmp_path, "informative", "dev")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"tweet_id,text\n1,a\n", "line 1: the columns are tweet_id,text"),
        ("\t".join(crisismmd.COLUMNS).encode() + b"\n", "no rows"),
        (b"x" * 2_000_000, "line 1 has more than 1,000,000 bytes"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / crisismmd.split_file("informative", "dev")).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_split(tmp_path, "informative", "dev")


@pytest.mark.parametrize(
    ("task", "split", "message"),
    [
        ("informative", "train", "cannot be read"),
        ("relevance", "train", "no task 'relevance'"),
        ("informative", "val", "no split 'val'"),
    ],
)
def test_absent_files(tmp_path: Path, task: str, split: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_split(tmp_path, task, split)


def test_file_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path, "informative", "dev", [row(1, "informative")])
    monkeypatch.setattr(crisismmd, "MAX_FILE_BYTES", 100)
    with pytest.raises(DatasetError, match="larger than 100 bytes"):
        read_split(tmp_path, "informative", "dev")


def test_invalid_utf8_is_read_and_counted(tmp_path: Path) -> None:
    path = write_split(tmp_path, "informative", "dev", [row(1, "informative", "caf@")])
    path.write_bytes(path.read_bytes().replace(b"@", b"\xe9"))
    split = read_split(tmp_path, "informative", "dev")
    assert split.texts == ["caf\N{REPLACEMENT CHARACTER}"]
    assert sum(split.corrected.values()) == 1


@pytest.mark.parametrize(("image", "missing"), [("photo.jpg", 0), ("absent.jpg", 1), ("../outside.jpg", 1)])
def test_missing_images_are_counted(tmp_path: Path, image: str, missing: int) -> None:
    folder = tmp_path / "data"
    write_split(folder, "informative", "dev", [row(1, "informative", image=image)])
    for path in (folder / "photo.jpg", tmp_path / "outside.jpg"):
        write_image(path, np.zeros((4, 4, 3), np.uint8))
    assert describe(read_split(folder, "informative", "dev"))["missing_images"] == missing


def test_rows_of_one_tweet_are_reduced_to_the_first(tmp_path: Path) -> None:
    entries = [row(1, "informative"), row(1, "informative", image_id="other"), row(2, "informative")]
    write_split(tmp_path, "informative", "train", entries)
    posts = read_split(tmp_path, "informative", "train").posts
    assert [post.image_id for post in first_of_each_tweet(posts)] == [posts[0].image_id, posts[2].image_id]


def test_leakage_within_and_across_tasks(tmp_path: Path) -> None:
    write_crisismmd(tmp_path, rows=10)
    shared = [row(5000, "informative", "Same text https://a.b/1"), row(5001, "informative")]
    write_split(tmp_path, "informative", "train", shared)
    write_split(
        tmp_path, "informative", "test", [row(5001, "informative"), row(6000, "informative", "same TEXT")]
    )
    write_split(tmp_path, "humanitarian", "test", [row(5000, "not_humanitarian")])
    splits = {(task, split): read_split(tmp_path, task, split) for task in TASKS for split in SPLITS}
    within, across = shared_tweets(splits)
    assert [tuple(entry) for entry in within] == [(("informative", "test"), ("informative", "train"), 1)]
    found = {(entry.held_out, entry.seen): entry.tweets for entry in across}
    assert found[("humanitarian", "test"), ("informative", "train")] == 1
    assert sum(found.values()) == 1
    train, test = splits["informative", "train"], splits["informative", "test"]
    assert shared_texts(train.posts, test.posts) == 2
    kept = without_held_out(train.posts, [test, splits["humanitarian", "test"]])
    assert kept == []


@pytest.mark.parametrize("key", PUBLISHED)
def test_published_sizes_are_consistent(key: tuple[str, str]) -> None:
    size = PUBLISHED[key]
    assert sum(size.classes) == size.rows >= size.tweets
    assert len(size.classes) == len(LABELS[key[0]])


def test_differences_name_what_differs(tmp_path: Path) -> None:
    write_split(tmp_path, "informative", "dev", [row(1, "informative")])
    assert differences(read_split(tmp_path, "informative", "dev")) == [
        "rows: 1 instead of 1573",
        "tweets: 1 instead of 1573",
        "classes: (1, 0) instead of (1056, 517)",
    ]


@pytest.mark.parametrize(("task", "split"), [(task, split) for task in TASKS for split in ("train", "dev")])
def test_published_files(shared_data: Any, task: str, split: str) -> None:
    found = read_split(shared_data / "crisismmd", task, split)
    assert size_of(found) == PUBLISHED[task, split]
    assert differences(found) == []
