"""Search back ends by name: ours over the memory-mapped store, faiss in memory, Qdrant on any host."""

from __future__ import annotations

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.exact_search import ExactSearch, Searcher
from mca_perception.retrieval.faiss_search import FAISS_KINDS, FaissSearch
from mca_perception.retrieval.qdrant_search import QdrantSearch
from mca_perception.retrieval.store import RetrievalStore

__all__ = ["BACK_ENDS", "open_searcher"]

BACK_ENDS = ("exact", *FAISS_KINDS, "qdrant")


def open_searcher(store: RetrievalStore, name: str, *, location: str | None = None) -> Searcher:
    """Open a back end by its name.

    Raises:
        RetrievalError: there is no such back end, or it is not installed.
    """
    if name == "exact":
        return ExactSearch(store)
    if name == "qdrant":
        return QdrantSearch(store, location)
    if name in FAISS_KINDS:
        return FaissSearch(store, name)
    raise RetrievalError(f"back end {name!r} is not known; choose one of {', '.join(BACK_ENDS)}")
