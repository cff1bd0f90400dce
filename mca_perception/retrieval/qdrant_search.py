"""The vector database Qdrant as a back end of search, inside the process or on any host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.exact_search import Hits, in_order
from mca_perception.retrieval.store import RetrievalStore

__all__ = ["QdrantSearch"]

_UPLOAD_ROWS = 1024


class QdrantSearch:
    """The vector database Qdrant: embedded in this process by default, or a server for more than one machine.

    Args:
        store: what to search; its vectors are uploaded, with the row number as their id.
        location: ``http://HOST:PORT`` of a server, or the folder of the embedded database; beside the store by default.

    Raises:
        RetrievalError: qdrant-client is not installed, or the server cannot be reached.
    """

    name = "qdrant"

    def __init__(self, store: RetrievalStore, location: str | None = None) -> None:
        try:
            from qdrant_client import QdrantClient, models
        except ImportError as error:
            raise RetrievalError(
                "this search needs qdrant-client: pip install -c constraints.txt -e '.[qdrant]', or choose exact"
            ) from error
        self._store, self._models = store, models
        self._collection = f"mca-{store.meta['store']}"
        remote = location is not None and "://" in location
        self.is_exact = not remote  # the embedded database compares with every row
        folder = location or str(Path(store.path) / "qdrant")
        try:
            self._client: Any = QdrantClient(url=location) if remote else QdrantClient(path=folder)
            if not self._client.collection_exists(self._collection):
                size = models.VectorParams(size=store.file.dimension, distance=models.Distance.DOT)
                self._client.create_collection(self._collection, vectors_config=size)
            self.refresh()
        except RetrievalError:
            raise
        except Exception as error:  # the client's errors have no base of their own
            raise RetrievalError(
                f"Qdrant at {location or folder} cannot be used ({error}); check it"
            ) from error

    def refresh(self) -> None:
        """Upload the rows that the store has gained."""
        start = self._client.count(self._collection, exact=True).count
        while start < self._store.count:
            stop = min(start + _UPLOAD_ROWS, self._store.count)
            batch = self._models.Batch(
                ids=list(range(start, stop)), vectors=self._store.vectors(slice(start, stop)).tolist()
            )
            self._client.upsert(self._collection, batch, wait=True)
            start = stop

    def search(self, queries: NDArray[np.float32], k: int) -> list[Hits]:
        """See :class:`Searcher`."""
        results = []
        for query in queries:
            points = self._client.query_points(self._collection, query=query.tolist(), limit=k).points
            rows = np.array([point.id for point in points], np.int64)
            results.append(in_order(rows, np.array([point.score for point in points], np.float32), k))
        return results

    def close(self) -> None:
        """Close the database."""
        self._client.close()
