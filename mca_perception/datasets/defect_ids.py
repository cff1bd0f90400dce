"""Ids of ARMBench's defect sets: lists of ids, what an id tells about its session, and splits by session.

An id has 21 digits: 3 for a station, 3 and ``00``, then 13 for a time in epoch milliseconds that many picks share
(specification of ARMBench, section 1.3; the meaning of the fields is inferred). Picks of one session look alike, so a
session must not lie on both sides of a split.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mca_perception.errors import DatasetError

__all__ = ["ID_DIGITS", "in_held_out_session", "read_entries", "read_lists", "session_of"]

ID_DIGITS = 21
SESSION_DIGITS = 13
MAX_LIST_BYTES = 64_000_000
_SCALE = 1 << 32
_Entry = TypeVar("_Entry")


def session_of(pick_id: str) -> str:
    """Session of an id: its time stamp. An id of another form is a session of its own."""
    if len(pick_id) == ID_DIGITS and pick_id.isdigit():
        return pick_id[-SESSION_DIGITS:]
    return pick_id


def in_held_out_session(session: str, fraction: float, salt: str) -> bool:
    """Whether a session belongs to the held-out part: a fixed draw by its name, whatever else is in the data.

    Args:
        session: from :func:`session_of`.
        fraction: share of all sessions that are held out.
        salt: names the draw; different ones are independent of each other.
    """
    digest = hashlib.blake2b(f"{salt}/{session}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < fraction * _SCALE


def read_lists(
    root: Path, known: Collection[str], noun: str, skipped: Counter[str], incomplete: Counter[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read ``train.csv`` and ``test.csv`` of a folder; an id in both counts as a test id.

    Args:
        root: the folder.
        known: ids that the data has.
        noun: what an id names.
        skipped: counts ids that are in both lists.
        incomplete: counts repaired and repeated ids.

    Raises:
        DatasetError: a list is missing, not text, too large, or holds something that is no id.
    """
    train, test = (_read_list(root / name, known, incomplete) for name in ("train.csv", "test.csv"))
    common = set(train) & set(test)
    skipped[f"{noun} in train.csv that is also in test.csv"] += len(common)
    return tuple(name for name in train if name not in common), test


def read_entries(
    ids: Iterable[str], read: Callable[[str], _Entry | None], limit: int | None
) -> tuple[_Entry, ...]:
    """What ``read`` makes of the ids, without ``None``; at most ``limit``."""
    entries = (entry for name in ids if (entry := read(name)) is not None)
    return tuple(islice(entries, limit))


def _read_list(path: Path, known: Collection[str], incomplete: Counter[str]) -> tuple[str, ...]:
    """Read ``train.csv`` or ``test.csv``: one id per line, no header. Ids stay text, with their leading zeros.

    An id that lost its zeros, as it does when a table program saves the list, gets them back if that names a known one.

    Args:
        path: the list.
        known: ids that the data has.
        incomplete: counts repaired and repeated ids.

    Raises:
        DatasetError: the file is missing, not text, too large, or holds something that is no id.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is missing; give the folder that holds train.csv and test.csv")
    if path.stat().st_size > MAX_LIST_BYTES:
        raise DatasetError(f"{path} is larger than {MAX_LIST_BYTES:,} bytes and cannot be a list of ids")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [row[0].strip() for row in csv.reader(stream) if row and row[0].strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} is not a text file of ids ({error}); copy it again") from error
    ids: dict[str, None] = {}
    for name in rows:
        if "e+" in name.lower():
            raise DatasetError(
                f"{path}: {name!r} is a rounded number, not an id; copy the original file and keep ids as text"
            )
        if name != Path(name).name or name in (".", ".."):
            raise DatasetError(f"{path}: {name!r} is not an id; write one id per line")
        padded = name.zfill(ID_DIGITS)
        if name not in known and padded in known:
            incomplete["id without its leading zeros"] += 1
            name = padded
        incomplete["id listed more than once"] += name in ids
        ids[name] = None
    return tuple(ids)
