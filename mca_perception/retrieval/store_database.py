"""The SQLite file of a store: its tables, how it is opened, and what its errors mean."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mca_perception.errors import RetrievalError

__all__ = ["DATABASE", "SCHEMA_VERSION", "chunks", "connect", "marks", "prepare", "translate"]

SCHEMA_VERSION = "1"
DATABASE = "store.sqlite"
_QUERY_AT_ONCE = 500
_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE image (row INTEGER PRIMARY KEY, image_id TEXT NOT NULL UNIQUE, uri TEXT NOT NULL,"
    " metadata TEXT NOT NULL)",
    "CREATE INDEX image_by_uri ON image (uri)",
    "CREATE TABLE skipped (image_id TEXT PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE entity (entity TEXT PRIMARY KEY, seen INTEGER NOT NULL, vector BLOB NOT NULL,"
    " rows BLOB NOT NULL, scores BLOB NOT NULL)",
)


def prepare(connection: sqlite3.Connection, meta: dict[str, str]) -> None:
    """Make the tables of a new store; one that has tables already is left as it is.

    Args:
        connection: open for writing.
        meta: first entries of the meta data; version and the store's own id are added.
    """
    if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
        return
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA:
        connection.execute(statement)
    meta = {**meta, "schema_version": SCHEMA_VERSION, "store": secrets.token_hex(4)}
    connection.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
    connection.execute("COMMIT")


def connect(folder: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open the file of a store.

    Raises:
        RetrievalError: it is missing, to be read only, or cannot be opened.
    """
    file = folder / DATABASE
    if read_only and not file.is_file():
        raise RetrievalError(
            f"store {folder} does not exist; make one with `mca retrieval index --images DIR --store {folder} "
            "--model BUNDLE`"
        )
    try:
        if read_only and not os.access(folder, os.W_OK):
            uri = f"{file.resolve().as_uri()}?mode=ro"
            return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=10)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error as error:
        raise translate(folder, error) from error
    return connection


def translate(folder: Path, error: sqlite3.Error) -> RetrievalError:
    """An error of SQLite as ours, with what to do about it."""
    text = str(error)
    remedy = "check that it is a store, whole, and readable"
    if "full" in text or "I/O" in text:
        remedy = "the disk is full or failing: make room and repeat the call; what was there is kept"
    elif "UNIQUE" in text:
        remedy = "an image id is there already: leave it out"
    elif "readonly" in text or "locked" in text:
        remedy = "make folder and files writable, and end other writers"
    return RetrievalError(f"store {folder} cannot be used ({text}); {remedy}")


def chunks(values: list[Any]) -> Iterator[list[Any]]:
    """Parts that are short enough for one statement."""
    return (values[start : start + _QUERY_AT_ONCE] for start in range(0, len(values), _QUERY_AT_ONCE))


def marks(values: Sequence[Any]) -> str:
    """Placeholders of a statement for some values."""
    return ",".join("?" * len(values))
