"""Run files of TREC Incident Streams: what a system submits, written, read and checked.

Two formats, after the specification of crisis categorisation, section 2.2: gzipped JSON lines of 2021, and the tab
separated one of 2019, which has no scores of information types.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mca_perception.datasets.trec_is import INFORMATION_TYPES, read_lines
from mca_perception.errors import DatasetError

__all__ = ["Run", "RunEntry", "missing_topics", "read_run", "write_run"]

KEYS = ("topic", "runtag", "tweet_id", "priority", "info_type_scores", "info_type_labels")
RUN_TAG = re.compile(r"[A-Za-z0-9_.-]{1,20}")
TWEET_ID = re.compile(r"\d{17,19}")
TYPES = len(INFORMATION_TYPES)
_INDEX = {name: index for index, name in enumerate(INFORMATION_TYPES)}
Format = Literal["2021", "2019"]


@dataclass(frozen=True)
class RunEntry:
    """A system's answer for one tweet.

    Attributes:
        topic: id of the event.
        tweet_id: 17 to 19 digits.
        priority: 0 to 1.
        scores: one per information type, 0 to 1.
        labels: 0 or 1 per information type.
    """

    topic: str
    tweet_id: str
    priority: float
    scores: tuple[float, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """A run file: its tag, and its answers in file order."""

    tag: str
    entries: tuple[RunEntry, ...]

    @property
    def topics(self) -> frozenset[str]:
        """Events that the run answers for."""
        return frozenset(entry.topic for entry in self.entries)


def missing_topics(run: Run, expected: Iterable[str]) -> list[str]:
    """Events of ``expected`` that the run has no answer for, sorted."""
    return sorted(set(expected) - run.topics)


def write_run(path: str | os.PathLike[str], run: Run, *, format: Format = "2021") -> None:
    """Write a run file atomically, after the checks of :func:`read_run`.

    ``2021`` is gzipped where the name ends in ``.gz``. ``2019`` ranks each topic by priority and keeps the labels, not
    the scores.

    Raises:
        DatasetError: the run breaks a rule of the format; nothing is written.
    """
    path = Path(path)
    _check_run(run, str(path))
    lines = _lines_2021(run) if format == "2021" else _lines_2019(run)
    content = "".join(f"{line}\n" for line in lines).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False) as stream:
        stream.write(content)
    Path(stream.name).chmod(0o644)
    Path(stream.name).replace(path)


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read and check a run file of either format, plain or gzipped.

    Raises:
        DatasetError: a line breaks a rule (its keys, tag, tweet id, priority, scores or labels), two lines answer for
            the same tweet of a topic, or there are two tags; the message names the line.
    """
    path = Path(path)
    entries: list[RunEntry] = []
    tags: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        tag, entry = _parse_2021(line, where) if line.startswith(b"{") else _parse_2019(line, where)
        tags.setdefault(tag, number)
        if len(tags) > 1:
            raise DatasetError(
                f"{where}: run tag {tag!r}, before it was {next(iter(tags))!r}; one file holds one run"
            )
        entries.append(entry)
    if not entries:
        raise DatasetError(f"{path} holds no answers; give a run file")
    run = Run(next(iter(tags)), tuple(entries))
    _check_run(run, str(path))
    return run


def _check_run(run: Run, name: str) -> None:
    if not RUN_TAG.fullmatch(run.tag):
        raise DatasetError(
            f"{name}: run tag {run.tag[:40]!r} must be 1 to 20 letters, digits, or any of _ . -"
        )
    seen: set[tuple[str, str]] = set()
    for entry in run.entries:
        _check_entry(entry, name)
        key = (entry.topic, entry.tweet_id)
        if key in seen:
            raise DatasetError(
                f"{name}: tweet {entry.tweet_id} of {entry.topic} is answered twice; remove one"
            )
        seen.add(key)


def _check_entry(entry: RunEntry, name: str) -> None:
    where = f"{name}: tweet {entry.tweet_id[:40]} of {entry.topic[:80]}"
    if not entry.topic:
        raise DatasetError(f"{where}: the topic is empty; name the event")
    if not TWEET_ID.fullmatch(entry.tweet_id):
        raise DatasetError(
            f"{where}: a tweet id has 17 to 19 digits; write it as a string, not as a rounded number"
        )
    if not _is_share(entry.priority):
        raise DatasetError(f"{where}: priority is {entry.priority!r}; it must be from 0 to 1")
    _check_row(entry.scores, "info_type_scores", where, _is_share, "numbers from 0 to 1")
    _check_row(entry.labels, "info_type_labels", where, _is_label, "0 or 1")


def _check_row(values: Sequence[Any], name: str, where: str, accepts: Any, wanted: str) -> None:
    if len(values) != TYPES or not all(map(accepts, values)):
        raise DatasetError(f"{where}: {name} must be {TYPES} times {wanted}, in the order of the ontology")


def _is_share(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 1


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in (0, 1)


def _lines_2021(run: Run) -> Iterator[str]:
    for entry in run.entries:
        values = (
            entry.topic,
            run.tag,
            entry.tweet_id,
            entry.priority,
            list(entry.scores),
            list(entry.labels),
        )
        yield json.dumps(dict(zip(KEYS, values, strict=True)))


def _lines_2019(run: Run) -> Iterator[str]:
    for topic in dict.fromkeys(entry.topic for entry in run.entries):
        ranked = sorted((e for e in run.entries if e.topic == topic), key=lambda e: -e.priority)
        for rank, entry in enumerate(ranked, start=1):
            names = [name for name, label in zip(INFORMATION_TYPES, entry.labels, strict=True) if label]
            fields = (topic, "Q0", entry.tweet_id, rank, entry.priority, json.dumps(names), run.tag)
            yield "\t".join(map(str, fields))


def _parse_2021(line: bytes, where: str) -> tuple[str, RunEntry]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where} is not JSON ({str(error)[:80]}); write one object per line") from error
    _check_keys(content, where)
    for name in ("topic", "runtag", "tweet_id"):
        if not isinstance(content[name], str):
            raise DatasetError(f"{where}: {name} must be a string")
    for name in ("info_type_scores", "info_type_labels"):
        if not isinstance(content[name], list):
            raise DatasetError(f"{where}: {name} must be a list of {TYPES}")
    entry = RunEntry(
        content["topic"],
        content["tweet_id"],
        content["priority"],
        tuple(content["info_type_scores"]),
        tuple(content["info_type_labels"]),
    )
    _check_entry(entry, where)
    return content["runtag"], entry


def _check_keys(content: dict[str, Any], where: str) -> None:
    missing, extra = sorted(set(KEYS) - set(content)), sorted(set(content) - set(KEYS))
    if missing or extra:
        problem = f"lacks {missing[0]}" if missing else f"has the unknown key {extra[0][:40]!r}"
        raise DatasetError(f"{where} {problem}; exactly these are allowed: {', '.join(KEYS)}")


def _parse_2019(line: bytes, where: str) -> tuple[str, RunEntry]:
    values = line.decode("utf-8", "replace").split("\t")
    if len(values) != 7:
        raise DatasetError(f"{where}: {len(values)} columns instead of 7; a run of 2019 is tab separated")
    topic, _, tweet_id, _, priority, categories, tag = values
    try:
        names, score = json.loads(categories), float(priority)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: priority must be a number and the categories a JSON list") from error
    labels = _labels_of(names, where)
    entry = RunEntry(topic, tweet_id, score, tuple(map(float, labels)), labels)
    _check_entry(entry, where)
    return tag, entry


def _labels_of(names: Any, where: str) -> tuple[int, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{where}: the categories must be a JSON list of ids")
    unknown: Collection[str] = [name for name in names if name not in _INDEX]
    if unknown:
        raise DatasetError(
            f"{where}: unknown information type {next(iter(unknown))[:80]!r}; use the ontology's ids"
        )
    return tuple(int(name in names) for name in INFORMATION_TYPES)
