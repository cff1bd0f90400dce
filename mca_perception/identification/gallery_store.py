"""The gallery's file: an SQLite database in write-ahead mode, one row per product.

Every change raises the generation and marks its product with it, a removed product too. Whoever knows the products of
some generation therefore reads only what has changed since.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import GalleryError

__all__ = ["MAX_REFERENCES", "SCHEMA_VERSION", "Change", "GalleryStore", "Image"]

SCHEMA_VERSION = "2"
MAX_REFERENCES = 5_000_000
_LOCK_TIMEOUT_S = 10
# Embeddings of 768 numbers take 3 kB: large pages waste less, and chain less where a product has several.
_PAGE_BYTES = 16_384
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS product (
    id INTEGER PRIMARY KEY, product_id TEXT NOT NULL UNIQUE, generation INTEGER NOT NULL,
    count INTEGER NOT NULL, embeddings BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS product_by_generation ON product (generation, product_id);
CREATE TABLE IF NOT EXISTS image (
    id INTEGER PRIMARY KEY, product_id TEXT NOT NULL, position INTEGER NOT NULL, path TEXT, content BLOB,
    UNIQUE (product_id, position)
);
"""
_REMEDIES = {
    "database is locked": f"another process has been writing for {_LOCK_TIMEOUT_S} s; try again",
    "readonly database": "the file or its folder is read-only; make both writable to change it",
    "disk is full": "free some space and repeat the call",
    "disk I/O error": "the disk is full, failing, or over a limit of file size; make room and repeat the call",
    "closed database": "it has been closed; open it again",
}

Image = str | bytes
"""A reference image: where its file lies, or the encoded image itself."""


class Change(NamedTuple):
    """A product as it is now: embeddings float32 ``[R, D]``, or ``None`` when it was removed."""

    product: str
    embeddings: NDArray[np.float32] | None


class GalleryStore:
    """One open gallery file; reads and writes go through connections of their own, so neither waits for the other.

    Attributes:
        path: the file.
        read_only: changes are refused, as file or folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read_only = False
        self._write_lock = threading.RLock()
        self._read_lock = threading.RLock()
        self._reader, self._writer = self._connect()

    def _connect(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            writer = _connection(self.path)
        except (OSError, sqlite3.Error) as error:
            raise GalleryError(f"gallery {self.path} cannot be opened ({error}); check the path") from error
        try:
            with self.errors():
                writer.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
                writer.execute("PRAGMA journal_mode = WAL")
                writer.execute("PRAGMA synchronous = FULL")
                self._prepare(writer)
                return _connection(self.path), writer
        except GalleryError as error:
            writer.close()
            if not _is_read_only(error.__cause__):
                raise
        self.read_only = True
        with self.errors():
            reader = _read_only_connection(self.path)
            return reader, reader

    def _prepare(self, writer: sqlite3.Connection) -> None:
        """Make the tables of a new file; bring those of version 1 up to date."""
        tables = {name for (name,) in writer.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        meta = dict(writer.execute("SELECT key, value FROM meta")) if "meta" in tables else {}
        version = meta.get("schema_version", "1" if "reference" in tables else SCHEMA_VERSION)
        if version == SCHEMA_VERSION and "store" in meta:
            return
        if version not in ("1", SCHEMA_VERSION):
            raise GalleryError(
                f"gallery {self.path} has version {version}, this release reads {SCHEMA_VERSION}; "
                "import the references again"
            )
        with _transaction(writer):
            for statement in _SCHEMA.split(";"):
                writer.execute(statement)
            for key, value in (("store", secrets.token_hex(16)), ("generation", "0"), ("references", "0")):
                writer.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
            if "reference" in tables:
                self._migrate(writer)
            writer.execute("INSERT OR REPLACE INTO meta VALUES ('schema_version', ?)", (SCHEMA_VERSION,))

    def _migrate(self, writer: sqlite3.Connection) -> None:
        """Take over the products of version 1, which had one row per reference."""
        products: dict[str, list[bytes]] = {}
        query = "SELECT product_id, embedding FROM reference ORDER BY product_id, position"
        for product, embedding in writer.execute(query):
            products.setdefault(product, []).append(embedding)
        generation = self._next_generation(writer)
        for product, rows in products.items():
            self._write(writer, generation, product, len(rows), b"".join(rows))
        writer.execute("DROP TABLE reference")

    def close(self) -> None:
        """Close the file."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's errors into the gallery's."""
        try:
            yield
        except sqlite3.Error as error:
            remedy = next((remedy for text, remedy in _REMEDIES.items() if text in str(error)), None)
            remedy = remedy or "check that it is a gallery, whole, and readable"
            raise GalleryError(f"gallery {self.path} cannot be used ({error}); {remedy}") from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for one or several reads that see the same state."""
        with self._read_lock, self.errors(), _transaction(self._reader, "BEGIN"):
            yield self._reader

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection for changes that are all on disk when the block ends, or none of them on error.

        Raises:
            GalleryError: the gallery cannot be written.
        """
        if self.read_only:
            raise GalleryError(
                f"gallery {self.path} cannot be changed (attempt to write a readonly database); "
                f"{_REMEDIES['readonly database']}"
            )
        with self._write_lock, self.errors(), _transaction(self._writer):
            yield self._writer

    def data_version(self) -> int:
        """A number that differs after any change of the file."""
        with self._read_lock, self.errors():
            return int(self._reader.execute("PRAGMA data_version").fetchone()[0])

    @staticmethod
    def meta(connection: sqlite3.Connection) -> dict[str, str]:
        """Facts about the whole: ``schema_version``, ``store``, ``generation``, ``references``, ``model``."""
        return dict(connection.execute("SELECT key, value FROM meta"))

    @staticmethod
    def dimension(connection: sqlite3.Connection) -> int | None:
        """Width of the embeddings; ``None`` without products."""
        row = connection.execute(
            "SELECT length(embeddings) / count FROM product WHERE count > 0 LIMIT 1"
        ).fetchone()
        return None if row is None else row[0] // 4

    def changes(self, connection: sqlite3.Connection, since: int) -> Iterator[Change]:
        """Products that changed after a generation, as they are now.

        Raises:
            GalleryError: an embedding is damaged.
        """
        query = "SELECT product_id, count, embeddings FROM product WHERE generation > ? ORDER BY generation"
        for product, count, blob in connection.execute(query, (since,)):
            yield Change(product, self._decode(product, count, blob) if count else None)

    @staticmethod
    def count_changes(connection: sqlite3.Connection, since: int) -> int:
        """Count the products that changed after a generation."""
        query = "SELECT COUNT(*) FROM product WHERE generation > ?"
        return int(connection.execute(query, (since,)).fetchone()[0])

    def products(self, connection: sqlite3.Connection) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """All products with their embeddings ``[R, D]``.

        Raises:
            GalleryError: an embedding is damaged, or its width is not that of the others.
        """
        width = self.dimension(connection)
        for product, rows in self.changes(connection, -1):
            if rows is None:
                continue
            if rows.shape[1] != width:
                raise self._damaged(product)
            yield product, rows

    def _damaged(self, product: str) -> GalleryError:
        return GalleryError(
            f"gallery {self.path} is damaged at product {product!r}; import its references again"
        )

    def _decode(self, product: str, count: Any, blob: Any) -> NDArray[np.float32]:
        try:
            rows = np.frombuffer(blob, "<f4").reshape(count, -1)
            lengths = np.einsum("rd,rd->r", rows, rows)
        except (ValueError, TypeError):
            rows, lengths = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
        if not rows.size or not np.abs(lengths - 1).max() <= 1e-3:  # false for NaN, too
            raise self._damaged(product)
        return np.asarray(rows, dtype=np.float32)

    def put(
        self,
        connection: sqlite3.Connection,
        products: Mapping[str, NDArray[np.float32]],
        images: Mapping[str, Sequence[Image]],
    ) -> None:
        """Add or replace products with their images, within :meth:`writing`.

        Raises:
            GalleryError: there would be too many references.
        """
        generation = self._next_generation(connection)
        for product, rows in products.items():
            self._write(connection, generation, product, len(rows), rows.astype("<f4").tobytes())
            connection.execute("DELETE FROM image WHERE product_id = ?", (product,))
            entries = [
                (product, i, *((image, None) if isinstance(image, str) else (None, image)))
                for i, image in enumerate(images.get(product, ()))
            ]
            connection.executemany(
                "INSERT INTO image (product_id, position, path, content) VALUES (?, ?, ?, ?)", entries
            )
        if int(self.meta(connection)["references"]) > MAX_REFERENCES:
            raise GalleryError(
                f"gallery {self.path} would exceed {MAX_REFERENCES:,} references; split it by site"
            )

    def remove(self, connection: sqlite3.Connection, product: str) -> bool:
        """Remove a product with its images, within :meth:`writing`; tell whether it was there."""
        row = connection.execute("SELECT count FROM product WHERE product_id = ?", (product,)).fetchone()
        if row is None or row[0] == 0:
            return False
        self._write(connection, self._next_generation(connection), product, 0, b"")
        connection.execute("DELETE FROM image WHERE product_id = ?", (product,))
        return True

    def images(self, connection: sqlite3.Connection, products: Iterable[str]) -> dict[str, list[Image]]:
        """Known reference images of products, in the order they were given."""
        query = "SELECT path, content FROM image WHERE product_id = ? ORDER BY position"
        return {
            product: [
                content if path is None else path for path, content in connection.execute(query, (product,))
            ]
            for product in products
        }

    @staticmethod
    def _next_generation(connection: sqlite3.Connection) -> int:
        connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
        return int(connection.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()[0])

    @staticmethod
    def _write(
        connection: sqlite3.Connection, generation: int, product: str, count: int, blob: bytes
    ) -> None:
        before = connection.execute("SELECT count FROM product WHERE product_id = ?", (product,)).fetchone()
        connection.execute(
            "INSERT INTO product (product_id, generation, count, embeddings) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (product_id) DO UPDATE SET generation = excluded.generation, "
            "count = excluded.count, embeddings = excluded.embeddings",
            (product, generation, count, blob),
        )
        more = count - (before[0] if before else 0)
        connection.execute("UPDATE meta SET value = value + ? WHERE key = 'references'", (more,))


def _connection(address: Path | str) -> sqlite3.Connection:
    """Open a path, or a URI."""
    return sqlite3.connect(
        address,
        uri=isinstance(address, str),
        isolation_level=None,
        check_same_thread=False,
        timeout=_LOCK_TIMEOUT_S,
    )


def _read_only_connection(path: Path) -> sqlite3.Connection:
    """Open for reading only, where the log's index cannot be made beside the file if need be."""
    address = f"{path.resolve().as_uri()}?mode=ro"
    log = path.with_name(f"{path.name}-wal")
    connection = _connection(address)
    try:
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1")
    except sqlite3.OperationalError:
        connection.close()
        if log.exists() and log.stat().st_size:
            raise  # what the log holds was acknowledged and must not be passed over
        return _connection(f"{address}&immutable=1")
    return connection


def _is_read_only(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.OperationalError) and any(
        text in str(error) for text in ("readonly database", "unable to open database file")
    )


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
