"""The product gallery: reference embeddings, kept durably in SQLite and searched in memory."""

from __future__ import annotations

import itertools
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mca_perception.errors import GalleryError
from mca_perception.identification.index import EmbeddingIndex, Ranking

__all__ = ["Gallery"]

SCHEMA_VERSION = "1"
MAX_DIMENSION = 8192
MAX_ID_LENGTH = 256
MAX_REFERENCES_PER_PRODUCT = 1000
MAX_REFERENCES = 5_000_000
_LOCK_TIMEOUT_S = 10
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reference (
    product_id TEXT NOT NULL, position INTEGER NOT NULL, embedding BLOB NOT NULL,
    PRIMARY KEY (product_id, position)
) WITHOUT ROWID;
"""


class Gallery:
    """Reference embeddings by product; open it with :meth:`open`.

    A change is on disk when the call returns. Several threads may use one gallery, and several processes one
    file: changes by others are seen at the next call. Embeddings are stored L2-normalised, so similarities
    are cosines.

    Example:
        >>> with Gallery.open("products.gallery") as gallery:  # doctest: +SKIP
        ...     gallery.add("B00X", embeddings)
        ...     gallery.search(queries, k=3, manifest=["B00X", "B00Y"])
        [[('B00X', 0.93)]]
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()
        self._index = EmbeddingIndex()
        self._data_version = -1

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, model: str | None = None, create: bool = True) -> Gallery:
        """Open a gallery file.

        Args:
            path: the file.
            model: fingerprint of the model whose embeddings it holds. Recorded in an empty gallery, compared
                in others.
            create: make the file when it does not exist.

        Raises:
            GalleryError: the file is missing, not a gallery, of another version, or belongs to another model.
        """
        file = Path(path)
        if not create and not file.exists():
            raise GalleryError(f"gallery {file} does not exist; import one with `mca gallery import`")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                file, isolation_level=None, check_same_thread=False, timeout=_LOCK_TIMEOUT_S
            )
        except (OSError, sqlite3.Error) as error:
            raise GalleryError(f"gallery {file} cannot be opened ({error}); check the path") from error
        gallery = cls(file, connection)
        try:
            with gallery._sqlite_errors():
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.executescript(_SCHEMA)
            gallery._claim(model)
        except GalleryError:
            connection.close()
            raise
        return gallery

    @property
    def model(self) -> str | None:
        """Fingerprint of the model whose embeddings these are, when known."""
        with self._current():
            return self._meta().get("model")

    @property
    def dimension(self) -> int | None:
        """Width of the embeddings; ``None`` while the gallery is empty."""
        with self._current() as index:
            return index.dimension

    def __len__(self) -> int:
        """Count the products."""
        with self._current() as index:
            return len(index.rows)

    def products(self) -> list[str]:
        """All product ids, sorted."""
        return sorted(self.reference_counts())

    def reference_counts(self) -> dict[str, int]:
        """Count the references of every product."""
        with self._current() as index:
            return {product: len(rows) for product, rows in index.rows.items()}

    def add(self, product_id: str, embeddings: ArrayLike) -> None:
        """Add a product, or replace all its references.

        Args:
            product_id: not empty, at most 256 characters.
            embeddings: ``[R, D]`` or ``[D]``, finite and not zero.

        Raises:
            GalleryError: the id or an embedding is not valid, or the width differs from the gallery's.
        """
        self.add_many({product_id: embeddings})

    def add_many(self, products: Mapping[str, ArrayLike]) -> None:
        """Add or replace several products in one transaction: all of them or, on error, none.

        Raises:
            GalleryError: as for :meth:`add`.
        """
        checked = {_check_id(p): _normalised(rows, f"product {p!r}") for p, rows in products.items()}
        for product, rows in checked.items():
            if len(rows) > MAX_REFERENCES_PER_PRODUCT:
                raise GalleryError(
                    f"product {product!r} has {len(rows)} references, over {MAX_REFERENCES_PER_PRODUCT}; "
                    "keep the most different ones"
                )
        with self._lock:
            with self._transaction():
                self._check_fit(checked)
                for product, rows in checked.items():
                    self._store(product, rows)
            for product, rows in checked.items():
                self._index.put(product, rows)

    def remove(self, product_id: str) -> None:
        """Remove a product.

        Raises:
            GalleryError: the gallery does not have it.
        """
        with self._lock:
            with self._transaction():
                if product_id not in self._index.rows:
                    raise GalleryError(
                        f"gallery {self.path} has no product {product_id!r}; see `mca gallery stats`"
                    )
                self._connection.execute("DELETE FROM reference WHERE product_id = ?", (product_id,))
            self._index.drop(product_id)

    def search(self, embeddings: ArrayLike, k: int, manifest: Iterable[str] | None = None) -> list[Ranking]:
        """Rank products for each query by their most similar reference.

        Args:
            embeddings: ``[N, D]`` queries, finite and not zero.
            k: products to return; fewer where there are fewer.
            manifest: rank only these products. Ids that the gallery lacks are ignored, see :meth:`unknown`.

        Returns:
            For each query up to ``k`` unique products, best first. Empty lists when nothing can be ranked.

        Raises:
            GalleryError: a query is not finite, zero, or of another width than the gallery; ``k`` is below 1.
        """
        if k < 1:
            raise GalleryError(f"k is {k}; ask for at least 1 product")
        wanted = None if manifest is None else _check_manifest(manifest)
        queries = _normalised(embeddings, "query", may_be_empty=True)
        with self._current() as index:
            if index.dimension is None or len(queries) == 0:
                return [[] for _ in queries]
            self._check_width(queries, index.dimension, "query")
            return index.search(queries, k, wanted)

    def unknown(self, manifest: Iterable[str]) -> list[str]:
        """Ids of a manifest that the gallery does not have, in their order."""
        with self._current() as index:
            return [product for product in _check_manifest(manifest) if product not in index.rows]

    def close(self) -> None:
        """Close the file. Further calls fail."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_fit(self, products: Mapping[str, NDArray[np.float32]]) -> None:
        width = self._index.dimension
        for product, rows in products.items():
            width = width or rows.shape[1]
            self._check_width(rows, width, f"product {product!r}")
        if self._index.count + sum(len(rows) for rows in products.values()) > MAX_REFERENCES:
            raise GalleryError(f"the gallery would exceed {MAX_REFERENCES:,} references; split it by site")

    def _check_width(self, rows: NDArray[np.float32], width: int, name: str) -> None:
        if rows.shape[1] != width:
            raise GalleryError(
                f"embedding of {name} has width {rows.shape[1]}, gallery {self.path} holds width {width}; "
                "embed with the gallery's model or start another gallery"
            )

    def _claim(self, model: str | None) -> None:
        """Check version and model of the file; record them in an empty one."""
        with self._transaction():
            meta = self._meta()
            version = meta.setdefault("schema_version", SCHEMA_VERSION)
            if version != SCHEMA_VERSION:
                raise GalleryError(
                    f"gallery {self.path} has version {version}, this release reads {SCHEMA_VERSION}; "
                    "import the references again"
                )
            if model is not None and not self._index.rows:
                meta["model"] = model
            elif model is not None and meta.get("model", model) != model:
                raise GalleryError(
                    f"gallery {self.path} holds embeddings of model {meta['model']}, not of {model}; "
                    "open it with that model, or import the references again with this one"
                )
            self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())

    def _meta(self) -> dict[str, str]:
        return dict(self._connection.execute("SELECT key, value FROM meta"))

    def _store(self, product: str, rows: NDArray[np.float32]) -> None:
        self._connection.execute("DELETE FROM reference WHERE product_id = ?", (product,))
        self._connection.executemany(
            "INSERT INTO reference VALUES (?, ?, ?)",
            [(product, i, row.astype("<f4").tobytes()) for i, row in enumerate(rows)],
        )

    def _load(self) -> EmbeddingIndex:
        cursor = self._connection.execute(
            "SELECT product_id, embedding FROM reference ORDER BY product_id, position"
        )
        index = EmbeddingIndex()
        for product, group in itertools.groupby(cursor, key=itemgetter(0)):
            try:
                rows = _normalised(np.stack([np.frombuffer(blob, "<f4") for _, blob in group]), "a product")
            except (ValueError, TypeError) as error:
                raise GalleryError(
                    f"gallery {self.path} is damaged at product {product!r}; import the references again"
                ) from error
            self._check_width(rows, index.dimension or rows.shape[1], f"product {product!r}")
            index.put(product, rows)
        return index

    def _refresh(self) -> None:
        """Load the index again if another connection has changed the file."""
        version = int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        if version != self._data_version:
            self._index = self._load()
            self._data_version = version

    @contextmanager
    def _current(self) -> Iterator[EmbeddingIndex]:
        """Hold the lock and give the up-to-date index."""
        with self._lock, self._sqlite_errors():
            self._refresh()
            yield self._index

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run a block as one transaction on the newest state of the file; roll back on error."""
        with self._lock, self._sqlite_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._refresh()
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _sqlite_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise GalleryError(
                f"gallery {self.path} cannot be used ({error}); check that it is a gallery and writable"
            ) from error


def _check_id(product_id: str) -> str:
    if not isinstance(product_id, str) or not product_id.strip() or len(product_id) > MAX_ID_LENGTH:
        raise GalleryError(
            f"product id {product_id!r} is not valid; give a string of 1 to {MAX_ID_LENGTH} characters"
        )
    return product_id


def _check_manifest(manifest: Iterable[str]) -> list[str]:
    """Unique ids in their order. A lone string is refused: it would be read as a list of characters."""
    if isinstance(manifest, str):
        raise GalleryError(f"manifest is the string {manifest!r}; give a list of product ids")
    return list(dict.fromkeys(manifest))


def _normalised(embeddings: ArrayLike, name: str, *, may_be_empty: bool = False) -> NDArray[np.float32]:
    """Check and L2-normalise embeddings ``[R, D]``."""
    rows = np.asarray(embeddings, dtype=np.float32)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not 0 < rows.shape[1] <= MAX_DIMENSION or (len(rows) == 0 and not may_be_empty):
        raise GalleryError(f"embedding of {name} has shape {rows.shape}, not [R, 1..{MAX_DIMENSION}]")
    if not np.isfinite(rows).all():
        raise GalleryError(f"embedding of {name} holds NaN or infinity; check the image and the model")
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if (lengths == 0).any():
        raise GalleryError(f"embedding of {name} is zero and has no direction; check the image and the model")
    return np.asarray(rows / lengths, dtype=np.float32)
