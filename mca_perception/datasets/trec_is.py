"""TREC Incident Streams: ontology, labels in three generations of files, and tweets.

Restated from the specification of crisis categorisation, sections 1.3 and 2.2. Information types are in the order of
the 2021 evaluator, alphabetical by id; run files and model outputs use the same. :mod:`.trec_is_runs` has the run
files.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mca_perception.errors import DatasetError

__all__ = [
    "ACTIONABLE",
    "INFORMATION_TYPES",
    "PRIORITIES",
    "REDUCED",
    "LabelFile",
    "LabelledTweet",
    "read_labels",
    "read_ontology",
    "read_tweets",
]

INFORMATION_TYPES = (
    "CallToAction-Donations",
    "CallToAction-MovePeople",
    "CallToAction-Volunteer",
    "Other-Advice",
    "Other-ContextualInformation",
    "Other-Discussion",
    "Other-Irrelevant",
    "Other-Sentiment",
    "Report-CleanUp",
    "Report-EmergingThreats",
    "Report-Factoid",
    "Report-FirstPartyObservation",
    "Report-Hashtags",
    "Report-Location",
    "Report-MultimediaShare",
    "Report-News",
    "Report-NewSubEvent",
    "Report-Official",
    "Report-OriginalEvent",
    "Report-ServiceAvailable",
    "Report-ThirdPartyObservation",
    "Report-Weather",
    "Request-GoodsServices",
    "Request-InformationWanted",
    "Request-SearchAndRescue",
)
ACTIONABLE = frozenset({1, 9, 16, 19, 22, 24})
"""Indices of the six high-importance types, which the "-H" metrics are about."""
REDUCED = frozenset({1, 2, 9, 11, 13, 14, 16, 19, 22, 23, 24})
"""Indices of the types that the reduced Task 2 keeps; all others become ``Other-Any``."""
PRIORITIES = {"Low": 0.25, "Medium": 0.5, "High": 0.75, "Critical": 1.0}
"""Score of each priority level."""

_INDEX = {name: index for index, name in enumerate(INFORMATION_TYPES)}
_SHORT = {name.partition("-")[2]: index for name, index in _INDEX.items()}
_ASSESSOR_SUFFIX = re.compile(r"(?<=\d)[A-E]$")
MAX_BYTES = 2_000_000_000
MAX_LINE_BYTES = 4_000_000
TWEET_ID = re.compile(r"\d{1,20}")


@dataclass(frozen=True)
class LabelledTweet:
    """What assessors said about a tweet.

    Attributes:
        topic: id of the event.
        tweet_id: id of the tweet.
        types: indices into :data:`INFORMATION_TYPES`.
        priority: key of :data:`PRIORITIES`; None where the file has none.
        text: the tweet, where the file has it.
    """

    topic: str
    tweet_id: str
    types: frozenset[int]
    priority: str | None
    text: str | None = None


@dataclass(frozen=True)
class LabelFile:
    """The labels of one file.

    Attributes:
        tweets: in file order, each pair of topic and tweet once.
        skipped: what was left out, by reason.
    """

    tweets: tuple[LabelledTweet, ...]
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def topics(self) -> tuple[str, ...]:
        """Ids of the events, sorted."""
        return tuple(sorted({tweet.topic for tweet in self.tweets}))

    def type_counts(self) -> dict[str, int]:
        """Tweets of each information type, in order."""
        counts = Counter(index for tweet in self.tweets for index in tweet.types)
        return {name: counts[index] for index, name in enumerate(INFORMATION_TYPES)}

    def priority_counts(self) -> dict[str, int]:
        """Tweets of each priority level; ``None`` counts those without one."""
        counts = Counter(tweet.priority for tweet in self.tweets)
        return {str(name): counts[name] for name in (*PRIORITIES, None)}


def read_ontology(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Ids of an ontology file (``ITR-H.types.v*.json``), in the evaluator's order.

    Raises:
        DatasetError: the file is no ontology, names a type twice, or names one that is not of the 25.
    """
    content = _json(Path(path))
    entries = content.get("informationTypes") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DatasetError(f"{path} has no list 'informationTypes'; give ITR-H.types.v4.json")
    names = [entry.get("id") if isinstance(entry, dict) else None for entry in entries]
    for name in names:
        if name not in _INDEX:
            raise DatasetError(
                f"{path}: unknown information type {str(name)[:80]!r}; give version 4 of the ontology"
            )
    if len(set(names)) != len(names):
        raise DatasetError(f"{path} names an information type twice; give the published file")
    return tuple(name for name in INFORMATION_TYPES if name in names)


def read_labels(path: str | os.PathLike[str], *, skip_unknown_types: bool = False) -> LabelFile:
    """Read assessors' labels of any generation, plain or gzipped.

    1. 2018 and 2019: ``events / tweets`` with ``postID``, ``categories``, ``priority``; the letter that an event split
       over assessors has at its end is taken off.
    2. 2018 in one file: ``annotator / eventsAnnotated`` with ``identifier``, and tweets as in 1.
    3. Merged: ``events / tweets`` with ``postID``, ``postText``, ``postPriority``, ``postCategories``.

    A tweet that several assessors labelled alike counts once.

    Args:
        path: the file.
        skip_unknown_types: leave out types that are not of the 25 (older ontologies have some) and count them.

    Raises:
        DatasetError: the file has none of these layouts, an unknown type or priority, a tweet without id, or two
            different judgements of one tweet; the message names the event and tweet.
    """
    path = Path(path)
    skipped: Counter[str] = Counter()
    tweets: dict[tuple[str, str], LabelledTweet] = {}
    for topic, fields in _label_entries(path):
        tweet = _labelled(path, topic, fields, skipped if skip_unknown_types else None)
        earlier = tweets.setdefault((tweet.topic, tweet.tweet_id), tweet)
        if earlier is not tweet:
            if (earlier.types, earlier.priority) != (tweet.types, tweet.priority):
                raise DatasetError(
                    f"{path}: tweet {tweet.tweet_id} of {tweet.topic} is labelled twice and differently; remove one"
                )
            skipped["same judgement of a tweet again"] += 1
    if not tweets:
        raise DatasetError(f"{path} holds no labelled tweets; give a file of assessors' labels")
    return LabelFile(tuple(tweets.values()), skipped)


def read_tweets(path: str | os.PathLike[str]) -> tuple[dict[str, str], Counter[str]]:
    """Texts by tweet id from one event's JSON lines, plain or gzipped, as the organisers' downloader writes them.

    Returns:
        Texts by id, and what was left out by reason.

    Raises:
        DatasetError: the file cannot be read, or no line in it is a tweet.
    """
    texts: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    for line in read_lines(Path(path)):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            skipped["line that is not JSON"] += 1
            continue
        fields = entry.get("allProperties", entry) if isinstance(entry, dict) else {}
        name, text = (fields.get(key) for key in ("id", "text")) if isinstance(fields, dict) else (None, None)
        if not isinstance(text, str) or not TWEET_ID.fullmatch(str(name)):
            skipped["line without id or text"] += 1
        elif str(name) in texts:
            skipped["tweet that came before"] += 1
        else:
            texts[str(name)] = text
    if not texts:
        raise DatasetError(f"{path} holds no tweets; give one event's file of the organisers' downloader")
    return texts, skipped


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file that may be gzipped, as bytes without their ends; sizes are bounded while unpacking.

    Raises:
        DatasetError: the file is missing or damaged, or it or one of its lines is too large.
    """
    total = 0
    try:
        with path.open("rb") as probe:
            gzipped = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if gzipped else path.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                total += len(line)
                if len(line) > MAX_LINE_BYTES or total > MAX_BYTES:
                    raise DatasetError(
                        f"{path}, line {number}: more than {MAX_LINE_BYTES:,} bytes in a line or {MAX_BYTES:,} in all; "
                        "split the file"
                    )
                yield line.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read ({error}); check the file") from error


def _json(path: Path) -> Any:
    """A whole JSON file, plain or gzipped; its size is bounded."""
    try:
        size = path.stat().st_size
        with path.open("rb") as probe:
            gzipped = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if gzipped else path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1) if size <= MAX_BYTES else b""
        if size > MAX_BYTES or len(content) > MAX_BYTES:
            raise DatasetError(f"{path} is larger than {MAX_BYTES:,} bytes; split it")
        return json.loads(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read ({error}); check the file") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON ({str(error)[:120]}); check the file") from error


def _label_entries(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Topic and fields of every tweet."""
    content = _json(path)
    annotator = content.get("annotator") if isinstance(content, dict) else None
    events = annotator.get("eventsAnnotated") if isinstance(annotator, dict) else None
    if events is None and isinstance(content, dict):
        events = content.get("events")
    if not isinstance(events, list):
        raise DatasetError(f"{path} has neither 'events' nor 'annotator'; give a file of assessors' labels")
    for event in events:
        topic = None
        if isinstance(event, dict):
            topic = event.get("trecisid") or event.get("eventid") or event.get("identifier")
        if not isinstance(topic, str) or not isinstance(event.get("tweets"), list):
            raise DatasetError(
                f"{path}: an event has no id or no list 'tweets'; give a file of assessors' labels"
            )
        for fields in event["tweets"]:
            if not isinstance(fields, dict):
                raise DatasetError(f"{path}: a tweet of {topic} is no object; check the file")
            yield _ASSESSOR_SUFFIX.sub("", topic), fields


def _labelled(
    path: Path, topic: str, fields: Mapping[str, Any], skipped: Counter[str] | None
) -> LabelledTweet:
    tweet_id = str(fields.get("postID", ""))
    if not TWEET_ID.fullmatch(tweet_id):
        raise DatasetError(
            f"{path}: a tweet of {topic} has the postID {tweet_id[:40]!r}; it must be a number"
        )
    where = f"{path}: tweet {tweet_id} of {topic}"
    categories = fields.get("categories", fields.get("postCategories"))
    if not isinstance(categories, list):
        raise DatasetError(f"{where} has no list of categories; check the file")
    priority = fields.get("priority", fields.get("postPriority"))
    if priority in (None, "", "None"):
        priority = None
    elif priority not in PRIORITIES:
        raise DatasetError(
            f"{where}: unknown priority {str(priority)[:40]!r}; use one of {', '.join(PRIORITIES)}"
        )
    text = fields.get("postText")
    return LabelledTweet(
        topic=topic,
        tweet_id=tweet_id,
        types=frozenset(_type_indices(categories, where, skipped)),
        priority=priority,
        text=text if isinstance(text, str) else None,
    )


def _type_indices(categories: Iterable[Any], where: str, skipped: Counter[str] | None) -> Iterator[int]:
    for name in categories:
        index = _INDEX.get(name, _SHORT.get(name)) if isinstance(name, str) else None
        if index is not None:
            yield index
        elif skipped is None:
            raise DatasetError(
                f"{where}: unknown information type {str(name)[:80]!r}; correct it, or skip unknown types"
            )
        else:
            skipped[f"unknown information type {str(name)[:80]}"] += 1
