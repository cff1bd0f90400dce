"""The product gallery: reference embeddings, kept durably in SQLite and searched while they change."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mca_perception.errors import GalleryError
from mca_perception.identification.gallery_cache import cache_path, read_cache, write_cache
from mca_perception.identification.gallery_search import ProductIndex, Ranking, Segment, search
from mca_perception.identification.gallery_store import GalleryStore, Image

__all__ = ["MAX_ID_LENGTH", "MAX_REFERENCES_PER_PRODUCT", "Gallery"]

MAX_DIMENSION = 8192
MAX_ID_LENGTH = 256
MAX_REFERENCES_PER_PRODUCT = 1000
CACHED_REFERENCES = 8192
"""From this many references on, the search matrix is kept in a file beside the gallery."""
# The matrix is written again on opening when more products than this share have changed since.
_STALE_SHARE = 0.05


class Gallery:
    """Reference embeddings by product; open it with :meth:`open`.

    A change is on disk when the call returns. Several threads may use one gallery, and several processes one
    file: changes by others are seen at the next call, and searches go on while products change. Embeddings are
    stored L2-normalised, so similarities are cosines.

    Example:
        >>> with Gallery.open("products.gallery") as gallery:  # doctest: +SKIP
        ...     gallery.add("B00X", embeddings)
        ...     gallery.search(queries, k=3, manifest=["B00X", "B00Y"])
        [[('B00X', 0.93)]]
    """

    def __init__(self, store: GalleryStore) -> None:
        self.path = store.path
        self.store = store
        self._lock = threading.RLock()
        self._index = ProductIndex()
        self._data_version = -1
        self._generation = 0
        self._store_id: str | None = None
        self._model: str | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, model: str | None = None, create: bool = True) -> Gallery:
        """Open a gallery file; one that cannot be written can still be searched.

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
        gallery = cls(GalleryStore(file))
        try:
            gallery._refresh()
            if model is not None:
                gallery._claim(model)
        except BaseException:
            gallery.close()
            raise
        return gallery

    @property
    def model(self) -> str | None:
        """Fingerprint of the model whose embeddings these are, when known."""
        with self._lock:
            self._refresh()
            return self._model

    @property
    def dimension(self) -> int | None:
        """Width of the embeddings; ``None`` while the gallery is empty."""
        with self._lock:
            self._refresh()
            return self._index.dimension

    def __len__(self) -> int:
        """Count the products."""
        with self._lock:
            self._refresh()
            return len(self._index)

    def products(self) -> list[str]:
        """All product ids, sorted."""
        return sorted(self.reference_counts())

    def reference_counts(self) -> dict[str, int]:
        """Count the references of every product."""
        with self._lock:
            self._refresh()
            return self._index.counts()

    def embeddings(self, product_id: str) -> NDArray[np.float32]:
        """Embeddings float32 ``[R, D]`` of a product, L2-normalised.

        Raises:
            GalleryError: the gallery does not have it.
        """
        with self._lock:
            self._refresh()
            rows = self._index.rows_of(product_id)
            if rows is None:
                raise self._absent(product_id)
            return np.array(rows)

    def images(self, products: Iterable[str]) -> dict[str, list[Image]]:
        """Reference images of products as far as they were given: paths, or encoded images."""
        with self.store.reading() as connection:
            return self.store.images(connection, products)

    def add(self, product_id: str, embeddings: ArrayLike, images: Sequence[Image] = ()) -> None:
        """Add a product, or replace all its references.

        Args:
            product_id: not empty, at most 256 characters.
            embeddings: ``[R, D]`` or ``[D]``, finite and not zero.
            images: where they came from, one each: the file's path, or the encoded image, which is then kept
                in the gallery. Without them the product cannot be embedded again for another model.

        Raises:
            GalleryError: the id or an embedding is not valid, the width differs from the gallery's, or the
                gallery cannot be written.
        """
        self.add_many({product_id: embeddings}, {product_id: images})

    def add_many(
        self, products: Mapping[str, ArrayLike], images: Mapping[str, Sequence[Image]] | None = None
    ) -> None:
        """Add or replace several products in one transaction: all of them or, on error, none.

        Raises:
            GalleryError: as for :meth:`add`.
        """
        images = images or {}
        checked = {_check_id(p): normalised(rows, f"product {p!r}") for p, rows in products.items()}
        for product, rows in checked.items():
            if len(rows) > MAX_REFERENCES_PER_PRODUCT:
                raise GalleryError(
                    f"product {product!r} has {len(rows)} references, over {MAX_REFERENCES_PER_PRODUCT}; "
                    "keep the most different ones"
                )
            if len(images.get(product, ())) not in (0, len(rows)):
                raise GalleryError(
                    f"product {product!r} has {len(rows)} embeddings and {len(images[product])} images; "
                    "give one image for each embedding, or none"
                )
        with self.store.writing() as connection:
            self._check_model(self.store.meta(connection))
            width = self.store.dimension(connection)
            for product, rows in checked.items():
                width = width or rows.shape[1]
                self._check_width(rows, width, f"product {product!r}")
            self.store.put(connection, checked, images)

    def remove(self, product_id: str) -> None:
        """Remove a product.

        Raises:
            GalleryError: the gallery does not have it, or cannot be written.
        """
        with self.store.writing() as connection:
            if not self.store.remove(connection, product_id):
                raise self._absent(product_id)

    def search(
        self,
        embeddings: ArrayLike,
        k: int,
        manifest: Iterable[str] | None = None,
        *,
        exact: bool = False,
    ) -> list[Ranking]:
        """Rank products for each query by their most similar reference.

        Within a manifest, and in galleries of up to 8,192 references, the ranking is exact. Beyond, candidates
        are chosen by one-bit codes first (see :mod:`.gallery_search`); their similarities are exact.

        Args:
            embeddings: ``[N, D]`` queries, finite and not zero.
            k: products to return; fewer where there are fewer.
            manifest: rank only these products. Ids that the gallery lacks are ignored, see :meth:`unknown`.
            exact: compare with every reference, also in a large gallery.

        Returns:
            For each query up to ``k`` unique products, best first. Empty lists when nothing can be ranked.

        Raises:
            GalleryError: a query is not finite, zero, or of another width than the gallery; ``k`` is below 1.
        """
        if k < 1:
            raise GalleryError(f"k is {k}; ask for at least 1 product")
        wanted = None if manifest is None else _check_manifest(manifest)
        queries = normalised(embeddings, "query", may_be_empty=True)
        with self._lock:
            self._refresh()
            if self._index.dimension is None or len(queries) == 0:
                return [[] for _ in queries]
            self._check_width(queries, self._index.dimension, "query")
            if wanted is None:
                views = self._index.views()
            else:
                view = self._index.manifest_view(wanted)
                views = [] if view is None else [view]
        return search(views, queries, k, exact=exact)

    def unknown(self, manifest: Iterable[str]) -> list[str]:
        """Ids of a manifest that the gallery does not have, in their order."""
        with self._lock:
            self._refresh()
            return [product for product in _check_manifest(manifest) if product not in self._index]

    def close(self) -> None:
        """Close the file. Further calls fail."""
        self.store.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _absent(self, product: str) -> GalleryError:
        return GalleryError(f"gallery {self.path} has no product {product!r}; see `mca gallery stats --list`")

    def _check_width(self, rows: NDArray[np.float32], width: int, name: str) -> None:
        if rows.shape[1] != width:
            raise GalleryError(
                f"embedding of {name} has width {rows.shape[1]}, gallery {self.path} holds width {width}; "
                "embed with the gallery's model or start another gallery"
            )

    def _claim(self, model: str) -> None:
        """Compare the model; record it in an empty gallery."""
        if self._model == model:
            return
        if not self._index and not self.store.read_only:
            with self.store.writing() as connection:
                if self.store.dimension(connection) is None:
                    connection.execute("INSERT OR REPLACE INTO meta VALUES ('model', ?)", (model,))
            self._refresh()
        if self._model not in (None, model):
            raise GalleryError(
                f"gallery {self.path} holds embeddings of model {self._model}, not of {model}; open it with that "
                "model, or embed its references again with `mca gallery reembed`"
            )

    def _check_model(self, meta: Mapping[str, str]) -> None:
        """Refuse to go on when the gallery was embedded again for another model since it was opened."""
        if self._model is not None and meta.get("model") != self._model:
            raise GalleryError(
                f"gallery {self.path} now holds embeddings of model {meta.get('model')}, not of {self._model}; "
                "open it again with that model"
            )

    def _refresh(self) -> None:
        """Take over what this or another process has changed."""
        with self._lock:
            version = self.store.data_version()
            if version == self._data_version:
                return
            with self.store.reading() as connection:
                meta = self.store.meta(connection)
                if self._index:
                    self._check_model(meta)
                if meta["store"] != self._store_id:
                    self._index, self._generation = self._load(connection, meta)
                for product, rows in self.store.changes(connection, self._generation):
                    if rows is None:
                        self._index.drop(product)
                    else:
                        self._check_width(
                            rows, self._index.dimension or rows.shape[1], f"product {product!r}"
                        )
                        self._index.put(product, rows)
            self._model, self._store_id = meta.get("model"), meta["store"]
            self._generation, self._data_version = int(meta["generation"]), version

    def _load(self, connection: sqlite3.Connection, meta: Mapping[str, str]) -> tuple[ProductIndex, int]:
        """Start from the search matrix of a large gallery, with the generation it is of.

        The file beside the gallery is written if it is missing or old. Where it cannot be, memory takes its place.
        """
        references, generation = int(meta["references"]), int(meta["generation"])
        if references < CACHED_REFERENCES:
            return ProductIndex(), 0
        path = cache_path(self.path)
        found = read_cache(path, meta["store"])
        if found and self.store.count_changes(connection, found[1]) <= _STALE_SHARE * len(found[0]):
            return ProductIndex(found[0]), found[1]
        dimension = self.store.dimension(connection) or 0
        segment = write_cache(path, meta["store"], generation, self.store.products(connection))
        if segment is None:
            segment = Segment.from_products(self.store.products(connection), references, dimension)
        return ProductIndex(segment), generation


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


def normalised(embeddings: ArrayLike, name: str, *, may_be_empty: bool = False) -> NDArray[np.float32]:
    """Check and L2-normalise embeddings ``[R, D]`` or ``[D]``.

    Raises:
        GalleryError: they have another shape, or one is not finite or zero; ``name`` is what the message calls them.
    """
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
