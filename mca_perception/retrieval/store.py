"""The store: vectors of all images in one flat file, everything else about them in SQLite.

Rows are appended: first the vectors, flushed to the disk, then one SQLite transaction that names the images. What a
crash leaves behind the rows that SQLite knows does not exist, and is cut off by the next writer. A file lock keeps a
second writer out; readers see committed rows only and go on while rows are added.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.store_database import (
    DATABASE,
    SCHEMA_VERSION,
    chunks,
    connect,
    marks,
    prepare,
    translate,
)
from mca_perception.retrieval.vectors import DTYPES, VectorFile, check_vectors
from mca_perception.retrieval.write_lock import WriteLock

__all__ = ["JOB_DONE", "MAX_ID_CHARACTERS", "ImageRecord", "RetrievalStore"]

VECTORS = "vectors.bin"
LOCK = "lock"
MAX_ID_CHARACTERS = 1024
JOB_DONE = "done"
"""Value of ``job`` in the meta data when no run is unfinished; otherwise the source of the run."""
MAX_DIMENSION = 8192


class ImageRecord(NamedTuple):
    """What is known about an image.

    Attributes:
        image_id: unique in the store.
        uri: where the image lies: a file's path, or ``FILE.parquet#ROW``. May be empty.
        metadata: a JSON object as text.
    """

    image_id: str
    uri: str = ""
    metadata: str = "{}"


class RetrievalStore:
    """A folder with image vectors; open it with :meth:`open` to search, with :meth:`write` to add.

    Attributes:
        path: the folder.
        file: the vectors.
        writable: whether this is the store's one writer.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: WriteLock | None) -> None:
        self.path = path
        self.writable = lock is not None
        self._connection = connection
        self._write_lock = lock
        self._lock = threading.RLock()
        self._count = -1
        self._data_version = -1
        self._entities: int | None = None
        with self._errors():
            self.meta = dict(connection.execute("SELECT key, value FROM meta"))
        if self.meta.get("schema_version") != SCHEMA_VERSION:
            raise RetrievalError(
                f"store {path} has version {self.meta.get('schema_version')}, this release reads {SCHEMA_VERSION}; "
                "index the images again"
            )
        self.file = VectorFile(path / VECTORS, int(self.meta["dimension"]), self.meta["dtype"])
        self.refresh()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, image_model: str | None = None) -> RetrievalStore:
        """Open a store to search it.

        Args:
            path: its folder.
            image_model: fingerprint of the image side that its vectors must be of.

        Raises:
            RetrievalError: it is missing, damaged, of another version, or of another model.
        """
        folder = Path(path)
        store = cls(folder, connect(folder, read_only=True), None)
        try:
            store._check_model(image_model)
        except RetrievalError:
            store.close()
            raise
        return store

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        *,
        image_model: str,
        dimension: int,
        dtype: str | None = None,
    ) -> RetrievalStore:
        """Open a store to add to it; an empty or missing folder becomes a new store.

        Args:
            path: its folder.
            image_model: fingerprint of the image side whose vectors will be added.
            dimension: width of the vectors.
            dtype: ``float32``, ``float16`` or ``int8``, how a new store keeps them; ``float16`` by default. None takes
                an existing store as it is.

        Raises:
            RetrievalError: another process writes to it, it cannot be written, or it is of another model, width or
                number format.
        """
        folder = Path(path)
        if not 1 <= dimension <= MAX_DIMENSION:
            raise RetrievalError(f"vectors have width {dimension}, it must be 1 to {MAX_DIMENSION}")
        if dtype is not None and dtype not in DTYPES:
            raise RetrievalError(f"number format {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
        if folder.exists() and (
            not folder.is_dir() or (not (folder / DATABASE).exists() and _has_foreign_files(folder))
        ):
            raise RetrievalError(f"{folder} exists and is not a store; choose another folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RetrievalError(
                f"store {folder} cannot be made ({error.strerror}); check the path"
            ) from error
        lock = WriteLock(folder / LOCK)
        try:
            connection = connect(folder, read_only=False)
            prepare(
                connection,
                {"image_model": image_model, "dimension": str(dimension), "dtype": dtype or "float16"},
            )
            store = cls(folder, connection, lock)
            store._check_model(image_model)
            if store.file.dimension != dimension or dtype not in (None, store.file.dtype):
                raise RetrievalError(
                    f"store {folder} holds {store.file.dtype} vectors of width {store.file.dimension}, not "
                    f"{dtype or store.file.dtype} of width {dimension}; start another store"
                )
            store.file.cut(store.count)
        except sqlite3.Error as error:
            lock.release()
            raise translate(folder, error) from error
        except BaseException:
            lock.release()
            raise
        return store

    @property
    def image_model(self) -> str:
        """Fingerprint of the image side whose vectors these are."""
        return str(self.meta["image_model"])

    @property
    def count(self) -> int:
        """Number of images."""
        return self._count

    @property
    def version(self) -> str:
        """Name of the store's present content: its own id and the number of images and entities."""
        with self._lock, self._errors():
            if self._entities is None or self.writable:
                self._entities = self._connection.execute("SELECT COUNT(*) FROM entity").fetchone()[0]
            return f"{self.meta['store']}-{self._count}-{self._entities}"

    def is_finished(self) -> bool:
        """Whether the last run over a source came to its end."""
        with self._lock, self._errors():
            row = self._connection.execute("SELECT value FROM meta WHERE key = 'job'").fetchone()
        return row is None or row[0] == JOB_DONE

    def refresh(self) -> bool:
        """Take over what the writer has added meanwhile; returns whether there was anything.

        Raises:
            RetrievalError: the vector file is shorter than the images that are recorded.
        """
        with self._lock, self._errors():
            version = self._connection.execute("PRAGMA data_version").fetchone()[0]
            if version == self._data_version and not self.writable:
                return False
            last = self._connection.execute("SELECT MAX(row) FROM image").fetchone()[0]
            count = 0 if last is None else last + 1
            self.file.map(count)
            grown = count != self._count
            self._count, self._data_version, self._entities = count, version, None
            return grown

    def vectors(self, rows: Sequence[int] | NDArray[np.integer[Any]] | slice) -> NDArray[np.float32]:
        """Vectors float32 ``[R, D]`` of some rows."""
        return self.file.read(rows)

    def records(self, rows: Sequence[int]) -> list[ImageRecord]:
        """What is known about the images of some rows, in their order."""
        found: dict[int, ImageRecord] = {}
        with self._lock, self._errors():
            for part in chunks(list(rows)):
                query = f"SELECT row, image_id, uri, metadata FROM image WHERE row IN ({marks(part)})"  # noqa: S608
                found |= {row: ImageRecord(*rest) for row, *rest in self._connection.execute(query, part)}
        return [found[row] for row in rows]

    def rows_of(self, image_ids: Iterable[str]) -> dict[str, int]:
        """Rows by image id, of those ids that the store has."""
        return self._lookup("image_id", image_ids)

    def rows_of_uris(self, uris: Iterable[str]) -> dict[str, int]:
        """Rows by the place that an image was read from, of those that the store has."""
        return self._lookup("uri", uris)

    def image_ids(self) -> Iterator[str]:
        """All image ids, by row."""
        with self._lock, self._errors():
            yield from (
                name for (name,) in self._connection.execute("SELECT image_id FROM image ORDER BY row")
            )

    def skipped(self) -> dict[str, str]:
        """Images that were left out, with the reason."""
        with self._lock, self._errors():
            return dict(self._connection.execute("SELECT image_id, reason FROM skipped ORDER BY image_id"))

    def known(self, image_ids: Sequence[str]) -> dict[str, str]:
        """Those ids that are in the store, with their places, and those that were left out, with an empty one."""
        known: dict[str, str] = {}
        with self._lock, self._errors():
            for part in chunks(list(image_ids)):
                for query in (
                    f"SELECT image_id, '' FROM skipped WHERE image_id IN ({marks(part)})",  # noqa: S608
                    f"SELECT image_id, uri FROM image WHERE image_id IN ({marks(part)})",  # noqa: S608
                ):
                    known |= dict(self._connection.execute(query, part))
        return known

    def append(
        self,
        records: Sequence[ImageRecord],
        vectors: NDArray[np.floating[Any]],
        skipped: Mapping[str, str] | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Add images, and note those that were left out: all of it is on disk when the call returns, or nothing.

        Args:
            records: ids that the store does not have yet.
            vectors: ``[R, D]``, finite; stored with length 1.
            skipped: reason by id of images that could not be read.
            facts: entries for the store's meta data.

        Raises:
            RetrievalError: an id or a vector is not valid, or the disk is full; the store is as it was then.
        """
        self._require_writer()
        for record in records:
            if not record.image_id.strip() or len(record.image_id) > MAX_ID_CHARACTERS:
                raise RetrievalError(
                    f"image id {record.image_id[:80]!r} is not valid: give 1 to {MAX_ID_CHARACTERS} characters"
                )
        rows = check_vectors(vectors, len(records), self.file.dimension)
        with self._lock:
            first = self._count
            self.file.append(rows, first)
            with self.writing() as connection:
                connection.executemany(
                    "INSERT INTO image VALUES (?, ?, ?, ?)",
                    [(first + i, *record) for i, record in enumerate(records)],
                )
                connection.executemany(
                    "INSERT OR REPLACE INTO skipped VALUES (?, ?)", list((skipped or {}).items())
                )
                connection.executemany(
                    "INSERT OR REPLACE INTO meta VALUES (?, ?)", list((facts or {}).items())
                )
            self.meta.update(facts or {})
            self.refresh()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for reads by the modules beside this one."""
        with self._lock, self._errors():
            yield self._connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection, for changes that are all on disk when the block ends, or none of them on error.

        Raises:
            RetrievalError: this is not the store's writer, or it cannot be written.
        """
        self._require_writer()
        with self._lock, self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the files and let another writer in."""
        with self._lock:
            self._connection.close()
            self.file.close()
            if self._write_lock is not None:
                self._write_lock.release()

    def __enter__(self) -> RetrievalStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lookup(self, column: str, values: Iterable[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        with self._lock, self._errors():
            for part in chunks(list(dict.fromkeys(values))):
                query = f"SELECT {column}, row FROM image WHERE {column} IN ({marks(part)})"  # noqa: S608
                found |= dict(self._connection.execute(query, part))
        return found

    def _require_writer(self) -> None:
        if not self.writable:
            raise RetrievalError(
                f"store {self.path} was opened to be searched; open it for writing to add to it"
            )

    def _check_model(self, image_model: str | None) -> None:
        if image_model is not None and image_model != self.image_model:
            raise RetrievalError(
                f"store {self.path} holds vectors of image model {self.image_model}, not of {image_model}; search it "
                "with a bundle of that image side, or index the images again into another store"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise translate(self.path, error) from error


def _has_foreign_files(folder: Path) -> bool:
    return any(path.name not in (LOCK, VECTORS) for path in folder.iterdir())
