"""Exchange a gallery's embeddings for those of another model, in steps that survive an interruption.

New embeddings are staged beside the old ones, which are searched meanwhile, and take their place in one transaction
at the end. A product that changes after it was staged becomes pending again.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Collection, Mapping

from numpy.typing import ArrayLike

from mca_perception.errors import GalleryError
from mca_perception.identification.gallery import normalised
from mca_perception.identification.gallery_store import GalleryStore

__all__ = ["Reembedding"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS staged (
    id INTEGER PRIMARY KEY, product_id TEXT NOT NULL UNIQUE, model TEXT NOT NULL, generation INTEGER NOT NULL,
    count INTEGER NOT NULL, embeddings BLOB NOT NULL
)
"""
_PENDING = """
SELECT product.product_id, product.generation FROM product
LEFT JOIN staged ON staged.product_id = product.product_id AND staged.generation = product.generation
WHERE product.count > 0 AND staged.id IS NULL ORDER BY product.product_id
"""


class Reembedding:
    """One change of model; goes on where an earlier one for the same model stopped.

    Args:
        store: the gallery's file.
        model: fingerprint of the new model.

    Raises:
        GalleryError: the gallery cannot be written.
    """

    def __init__(self, store: GalleryStore, model: str) -> None:
        self._store = store
        self._model = model
        with store.writing() as connection:
            connection.execute(_SCHEMA)
            connection.execute("DELETE FROM staged WHERE model <> ?", (model,))

    def pending(self) -> dict[str, int]:
        """Products without a new embedding, with the generation that they are of."""
        with self._store.reading() as connection:
            return dict(connection.execute(_PENDING))

    def stage(self, products: Mapping[str, ArrayLike], generations: Mapping[str, int]) -> None:
        """Keep new embeddings ``[R, D]`` of products, for the generation that :meth:`pending` told.

        Raises:
            GalleryError: an embedding is not valid, or the gallery cannot be written.
        """
        rows = {product: normalised(new, f"product {product!r}") for product, new in products.items()}
        with self._store.writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO staged (product_id, model, generation, count, embeddings) "
                "VALUES (?, ?, ?, ?, ?)",
                [
                    (product, self._model, generations[product], len(new), new.astype("<f4").tobytes())
                    for product, new in rows.items()
                ],
            )

    def finish(self, leave_out: Collection[str] = ()) -> None:
        """Put the new embeddings in the place of the old ones.

        Args:
            leave_out: products without new embeddings that may be removed.

        Raises:
            GalleryError: other products are pending, or the new embeddings differ in width. Nothing has changed then.
        """
        with self._store.writing() as connection:
            pending = [product for product, _ in connection.execute(_PENDING) if product not in leave_out]
            if pending:
                raise GalleryError(
                    f"gallery {self._store.path} has {len(pending)} products without new embeddings, such as "
                    f"{pending[0]!r}; embed them again, or allow that they are left out"
                )
            self._exchange(connection)

    def _exchange(self, connection: sqlite3.Connection) -> None:
        widths = "SELECT COUNT(DISTINCT length(embeddings) / count) FROM staged"
        if connection.execute(widths).fetchone()[0] > 1:
            raise GalleryError("the new embeddings differ in width; embed all products with one model")
        left_out = [product for product, _ in connection.execute(_PENDING)]
        connection.execute(
            "UPDATE product SET count = staged.count, embeddings = staged.embeddings FROM staged "
            "WHERE staged.product_id = product.product_id AND staged.generation = product.generation"
        )
        for product in left_out:
            self._store.remove(connection, product)
        references = connection.execute("SELECT SUM(count) FROM product").fetchone()[0] or 0
        # Another store to whoever has the old one open: all of it is read again.
        for key, value in (
            ("model", self._model),
            ("store", secrets.token_hex(16)),
            ("references", str(references)),
        ):
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        connection.execute("DROP TABLE staged")
