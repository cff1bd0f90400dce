"""Checks of a CrisisMMD copy: sizes beside the published ones, and what its splits share.

Within a task no tweet may be in two splits. Across the two tasks the published splits overlap heavily, so a model of
both tasks at once would have seen the tests of one in the training data of the other (specification of crisis
categorisation, section 2.1): :func:`shared_tweets` counts that, and :func:`without_held_out` removes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, permutations
from typing import Any, NamedTuple

from mca_perception.datasets.crisismmd import SPLITS, TASKS, CrisisSplit, LabelledPost

__all__ = [
    "PUBLISHED",
    "Overlap",
    "Size",
    "describe",
    "differences",
    "shared_texts",
    "shared_tweets",
    "without_held_out",
]

_URL = re.compile(r"https?://\S*")
Key = tuple[str, str]
"""Task and split."""


class Size(NamedTuple):
    """Rows, distinct tweets and rows by class (in class order) of a file."""

    rows: int
    tweets: int
    classes: tuple[int, ...]


PUBLISHED: dict[Key, Size] = {
    ("informative", "train"): Size(9601, 8293, (6345, 3256)),
    ("informative", "dev"): Size(1573, 1573, (1056, 517)),
    ("informative", "test"): Size(1534, 1534, (1030, 504)),
    ("humanitarian", "train"): Size(6126, 5263, (71, 612, 3252, 1279, 912)),
    ("humanitarian", "dev"): Size(998, 998, (9, 80, 521, 239, 149)),
    ("humanitarian", "test"): Size(955, 955, (9, 81, 504, 235, 126)),
}
"""Sizes of the published agreed-label files."""


class Overlap(NamedTuple):
    """How many tweets of ``held_out`` are in ``seen`` too."""

    held_out: Key
    seen: Key
    tweets: int


def size_of(split: CrisisSplit) -> Size:
    """Count a split."""
    return Size(len(split.posts), len(split.tweet_ids), tuple(split.class_counts().values()))


def differences(split: CrisisSplit) -> list[str]:
    """In which counts an agreed-label file differs from the published one, in words; empty when in none."""
    found, published = size_of(split), PUBLISHED[split.task, split.split]
    return [
        f"{name}: {ours} instead of {theirs}"
        for name, ours, theirs in zip(Size._fields, found, published, strict=True)
        if ours != theirs
    ]


def describe(split: CrisisSplit) -> dict[str, Any]:
    """Counts of a split as plain figures."""
    events: dict[str, int] = {}
    for event in split.events:
        events[event] = events.get(event, 0) + 1
    return {
        "file": split.path.name,
        "rows": len(split.posts),
        "tweets": len(split.tweet_ids),
        "classes": split.class_counts(),
        "events": dict(sorted(events.items())),
        "missing_images": len(split.missing_images()),
        "corrected": dict(split.corrected),
    }


def shared_tweets(splits: Mapping[Key, CrisisSplit]) -> tuple[list[Overlap], list[Overlap]]:
    """Tweets that two splits have in common.

    Returns:
        Overlaps within a task, which must not be; and, for dev and test of one task, overlaps with train and dev of
        the other.
    """
    within, across = [], []
    for a, b in combinations(splits, 2):
        if a[0] == b[0] and (common := len(splits[a].tweet_ids & splits[b].tweet_ids)):
            within.append(Overlap(max(a, b, key=_position), min(a, b, key=_position), common))
    for held_out, seen in permutations(splits, 2):
        if held_out[0] != seen[0] and SPLITS.index(seen[1]) < SPLITS.index(held_out[1]):
            across.append(Overlap(held_out, seen, len(splits[held_out].tweet_ids & splits[seen].tweet_ids)))
    return within, across


def shared_texts(seen: Sequence[LabelledPost], held_out: Sequence[LabelledPost]) -> int:
    """Posts of ``held_out`` whose text, without links and case, is that of a post in ``seen``."""
    known = {_plain(post.text) for post in seen}
    return sum(_plain(post.text) in known for post in held_out)


def without_held_out(posts: Iterable[LabelledPost], held_out: Iterable[CrisisSplit]) -> list[LabelledPost]:
    """Rows whose tweet is in none of the given splits: what a model of both tasks at once may train on."""
    forbidden = set().union(*(split.tweet_ids for split in held_out))
    return [post for post in posts if post.tweet_id not in forbidden]


def every_key() -> list[Key]:
    """The six files, in order."""
    return [(task, split) for task in TASKS for split in SPLITS]


def _position(key: Key) -> int:
    return SPLITS.index(key[1])


def _plain(text: str) -> str:
    return " ".join(_URL.sub(" ", text.lower()).split())
