"""The pictures that are shipped with the embedded model, so that a search finds something on a fresh machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mca_perception.errors import RetrievalError
from mca_perception.resources import cache_folder, resource_path
from mca_perception.retrieval.encoder import DualEncoder
from mca_perception.retrieval.indexing import index_images
from mca_perception.retrieval.sources import open_source
from mca_perception.retrieval.store import RetrievalStore

__all__ = ["embedded_store"]

MODEL = "models/retrieval"
PICTURES = "pictures"


def embedded_store() -> Path:
    """Store of the shipped pictures; made in the user's cache at the first call, in a few seconds.

    Raises:
        McaError: model or pictures are not installed, or the cache cannot be written.
    """
    model = resource_path(MODEL).resolve()
    encoder = DualEncoder.from_bundle(model)
    installed = hashlib.sha256(str(model).encode()).hexdigest()[:8]  # a store names where its pictures lie
    folder = cache_folder("retrieval") / f"{encoder.image_fingerprint}-{installed}.store"
    source = open_source(model / PICTURES)
    if not _is_complete(folder, len(source)):
        with RetrievalStore.write(
            folder, image_model=encoder.image_fingerprint, dimension=encoder.dimension
        ) as store:
            index_images(source, store, encoder, bundle=str(model))
    return folder


def _is_complete(folder: Path, images: int) -> bool:
    try:
        with RetrievalStore.open(folder) as store:
            return store.is_finished() and store.count == images
    except RetrievalError:  # not there, or its making was cut off before there was anything to read
        return False
