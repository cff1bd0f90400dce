"""Indexes of faiss as back ends of search: scans of vectors in memory, and graphs and lists that skip most of them."""

from __future__ import annotations

import json
import os
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.exact_search import Hits, in_order, score_rows
from mca_perception.retrieval.store import RetrievalStore

__all__ = ["FAISS_KINDS", "FaissSearch"]


class _Kind(NamedTuple):
    """How an index is made.

    Attributes:
        factory: faiss' own description of it; ``{lists}`` stands for the number of lists.
        kept: whether it is kept beside the store, as it takes long to build.
        build_effort: of a graph, candidates looked at for each row while it is built (``efConstruction``).
    """

    factory: str
    kept: bool = False
    build_effort: int = 0


_KINDS = {
    "faiss-flat": _Kind("Flat"),
    "faiss-float16": _Kind("SQfp16"),
    "faiss-int8": _Kind("SQ8"),
    "faiss-hnsw": _Kind("HNSW32,Flat", kept=True, build_effort=80),
    "faiss-hnsw-int8": _Kind("HNSW16,SQ8", kept=True, build_effort=40),
    "faiss-ivf-int8": _Kind("IVF{lists},SQ8", kept=True),
}
FAISS_KINDS = tuple(_KINDS)
SEARCH_EFFORT, SEARCHED_LISTS = 128, 32
"""Rows of a graph that a search keeps in sight (``efSearch``), and lists that it reads (``nprobe``), at least."""
CANDIDATES_PER_HIT = 2
"""Rows that an index skipping others proposes for every one that is wanted; the store's own vectors choose."""
_FEWEST_ROWS_PER_LIST, _TRAINING_ROWS_PER_LIST = 39, 64
_TRAINING_ROWS = 65_536
# An index is trained again when the store has grown by the first factor, and put on the disk again at the second.
_LARGEST_GROWTH, _KEPT_GROWTH = 8, 1.05
_ADDED_AT_ONCE = 8192
KEEP_EVERY_S = 300.0
"""Seconds after which an index in the making is put on the disk, so that a build that was stopped goes on there."""


class FaissSearch:
    """An index of faiss in memory.

    ``faiss-flat``, ``faiss-float16`` and ``faiss-int8`` compare with every row and are read in anew. The others,
    the graphs ``faiss-hnsw`` and ``faiss-hnsw-int8`` and the lists ``faiss-ivf-int8``, compare with a small part, may
    miss rows, take long to build, and are kept beside the store, named after what they are of.

    Args:
        store: what to search.
        kind: one of `FAISS_KINDS`.

    Raises:
        RetrievalError: faiss is not installed, or the kind is not known.
    """

    def __init__(self, store: RetrievalStore, kind: str = "faiss-hnsw") -> None:
        if kind not in _KINDS:
            raise RetrievalError(f"faiss index {kind!r} is not known; choose one of {', '.join(FAISS_KINDS)}")
        try:
            import faiss
        except ImportError as error:
            raise RetrievalError(
                "this search needs faiss: pip install -c constraints.txt -e '.[retrieval]', or choose exact"
            ) from error
        self.name, self.is_exact = kind, kind == "faiss-flat"
        self._faiss: Any = faiss
        self._store, self._kind = store, _KINDS[kind]
        self._file = store.path / f"{kind.removeprefix('faiss-')}.faiss"
        self._trained_on, self._kept_rows = store.count, 0
        self._index: Any = self._kept() if self._kind.kept else None
        if self._index is None:
            self._index = self._new()
        self.refresh()

    def _new(self) -> Any:
        width, count = self._store.file.dimension, self._store.count
        lists = max(1, min(int(count**0.5), count // _FEWEST_ROWS_PER_LIST))
        factory = self._kind.factory.format(lists=lists)
        index = self._faiss.index_factory(width, factory, self._faiss.METRIC_INNER_PRODUCT)
        if self._kind.build_effort:
            index.hnsw.efConstruction = self._kind.build_effort
        if not index.is_trained and count:
            wanted = max(_TRAINING_ROWS, lists * _TRAINING_ROWS_PER_LIST)
            # Spread over the store: neighbouring rows often show the same things.
            rows = np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))
            index.train(self._store.vectors(rows))
        return index

    def refresh(self) -> None:
        """Add the rows that the store has gained; keep a much grown index on the disk where it takes long to build."""
        count = self._store.count
        if count and not self._index.is_trained:
            self._index, self._trained_on = self._new(), count
        kept = time.monotonic()
        for start in range(self._index.ntotal, count, _ADDED_AT_ONCE):
            self._index.add(self._store.vectors(slice(start, min(start + _ADDED_AT_ONCE, count))))
            if self._kind.kept and time.monotonic() - kept > KEEP_EVERY_S:
                self._keep()
                kept = time.monotonic()
        if self._kind.kept and count > _KEPT_GROWTH * self._kept_rows:
            self._keep()

    def search(self, queries: NDArray[np.float32], k: int) -> list[Hits]:
        """See :class:`~mca_perception.retrieval.exact_search.Searcher`; graphs and lists may miss rows."""
        total = int(self._index.ntotal)
        if not total:
            return [Hits(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
        queries = np.ascontiguousarray(queries)
        if not self._kind.kept:
            scores, rows = self._index.search(queries, min(k, total))
            return [in_order(*pair, k) for pair in zip(rows, scores, strict=True)]
        proposed = min(CANDIDATES_PER_HIT * k, total)
        _, rows = self._index.search(queries, proposed, params=self._effort(proposed))
        return [
            score_rows(self._store, query[None], k, rows=np.sort(found[found >= 0]))[0]
            for query, found in zip(queries, rows, strict=True)
        ]

    def _effort(self, wanted: int) -> Any:
        if self._kind.build_effort:
            return self._faiss.SearchParametersHNSW(efSearch=max(SEARCH_EFFORT, wanted))
        return self._faiss.SearchParametersIVF(nprobe=SEARCHED_LISTS)

    def _identity(self) -> dict[str, Any]:
        return {
            "store": self._store.meta["store"],
            "factory": self._kind.factory,
            "build_effort": self._kind.build_effort,
        }

    def _kept(self) -> Any:
        """The index beside the store, if it is of this store, these settings, and about this size."""
        try:
            facts = json.loads(self._file.with_suffix(".json").read_text(encoding="utf-8"))
            trained_on = int(facts.pop("trained_on"))
            if facts != self._identity():
                return None
            index = self._faiss.read_index(str(self._file))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # missing or damaged: built again
            return None
        fits = index.d == self._store.file.dimension and index.ntotal <= self._store.count
        is_outgrown = "lists" in self._kind.factory and self._store.count > _LARGEST_GROWTH * trained_on
        if not fits or is_outgrown:
            return None
        self._trained_on, self._kept_rows = trained_on, int(index.ntotal)
        return index

    def _keep(self) -> None:
        """Write index and facts atomically, where the folder can be written."""
        if not os.access(self._store.path, os.W_OK):
            return
        part = self._file.with_suffix(f".part{os.getpid()}")
        facts = self._file.with_suffix(".json")
        self._faiss.write_index(self._index, str(part))
        facts.unlink(missing_ok=True)
        part.replace(self._file)
        facts.write_text(json.dumps({**self._identity(), "trained_on": self._trained_on}), encoding="utf-8")
        self._kept_rows = int(self._index.ntotal)
