"""The entity index: for every entity the images nearest to it, so that a search scores few images instead of all.

An entity is encoded once, when it is added; a search only looks up. An entity remembers how many rows it was compared
with: rows that were added later are compared when the entity is asked for, so its list is always that of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.encoder import TextEncoder
from mca_perception.retrieval.entities import canonical
from mca_perception.retrieval.exact_search import Hits, best_rows, score_rows
from mca_perception.retrieval.store import RetrievalStore

__all__ = ["DEFAULT_IMAGES_PER_ENTITY", "Candidates", "EntityIndex"]

DEFAULT_IMAGES_PER_ENTITY = 10_000
"""K of the thesis."""
MAX_ENTITIES_AT_ONCE = 256
_MODEL, _IMAGES = "entity_model", "images_per_entity"


@dataclass(frozen=True)
class Candidates:
    """Images that the entities of a query lead to.

    Attributes:
        known: entities that the index has.
        unknown: the others; they do not count.
        rows: int64, ascending, without repetitions.
    """

    known: list[str]
    unknown: list[str]
    rows: NDArray[np.int64]


class _Entry(NamedTuple):
    seen: int
    vector: NDArray[np.float32]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class EntityIndex:
    """The entities of a store, inside its database.

    Args:
        store: the store; opened for writing to add entities.
    """

    def __init__(self, store: RetrievalStore) -> None:
        self._store = store

    @property
    def images_per_entity(self) -> int | None:
        """K; None while there are no entities."""
        value = self._meta().get(_IMAGES)
        return None if value is None else int(value)

    def is_empty(self) -> bool:
        """Whether there are no entities."""
        with self._store.reading() as connection:
            return connection.execute("SELECT 1 FROM entity LIMIT 1").fetchone() is None

    def __len__(self) -> int:
        with self._store.reading() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM entity").fetchone()[0])

    def add(
        self,
        entities: Iterable[str],
        encoder: TextEncoder,
        *,
        images_per_entity: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Add entities; those that are there stay as they are. Each batch is on disk before the next.

        Args:
            entities: any spelling.
            encoder: the pre-trained text side; the same for all entities of a store.
            images_per_entity: K; the store's own, else 10,000.
            progress: told how many of the new entities are done.

        Returns:
            How many were new.

        Raises:
            RetrievalError: the encoder or K is another than that of the entities there.
        """
        if encoder.image_fingerprint != self._store.image_model:
            raise RetrievalError(
                f"text model {encoder.name} belongs to image model {encoder.image_fingerprint}, store "
                f"{self._store.path} to {self._store.image_model}; take a bundle of that image side"
            )
        k = self._claim(encoder.text_fingerprint, images_per_entity)
        wanted = list(dict.fromkeys(name for entity in entities if (name := canonical(entity))))
        new = [name for name in wanted if name not in self._entries(wanted)]
        for start in range(0, len(new), MAX_ENTITIES_AT_ONCE):
            part = new[start : start + MAX_ENTITIES_AT_ONCE]
            vectors = encoder.encode_texts(part)
            found = score_rows(self._store, vectors, k)
            self._put(
                (name, _Entry(self._store.count, vector, *hits))
                for name, vector, hits in zip(part, vectors, found, strict=True)
            )
            progress(start + len(part), len(new))
        return len(new)

    def update(self) -> int:
        """Compare all entities with the rows added since, and keep the result; returns how many had to be."""
        with self._store.reading() as connection:
            query = "SELECT entity FROM entity WHERE seen < ? ORDER BY entity"
            behind = [name for (name,) in connection.execute(query, (self._store.count,))]
        for start in range(0, len(behind), MAX_ENTITIES_AT_ONCE):
            part = behind[start : start + MAX_ENTITIES_AT_ONCE]
            self._put(self._current(part).items())
        return len(behind)

    def lookup(self, entities: Sequence[str]) -> Candidates:
        """Union of the images of those entities that are known."""
        wanted = list(dict.fromkeys(name for entity in entities if (name := canonical(entity))))
        entries = self._current(wanted)
        lists = [entry.rows for entry in entries.values()]
        rows = np.unique(np.concatenate(lists)) if lists else np.zeros(0, np.int64)
        known = [name for name in wanted if name in entries]
        return Candidates(known, [name for name in wanted if name not in entries], rows)

    def ranking(self, entities: Sequence[str], k: int) -> Hits:
        """Images by their highest score with any of the entities: stage 1 alone, for comparisons."""
        entries = self._current([canonical(entity) for entity in entities]).values()
        if not entries:
            return Hits(np.zeros(0, np.int64), np.zeros(0, np.float32))
        rows, owner = np.unique(np.concatenate([entry.rows for entry in entries]), return_inverse=True)
        best = np.full(len(rows), -np.inf, np.float32)
        np.maximum.at(best, owner, np.concatenate([entry.scores for entry in entries]))
        return best_rows(best, rows, k)

    def _current(self, names: Sequence[str]) -> dict[str, _Entry]:
        """Entries as they are with all rows of the store."""
        entries = self._entries(names)
        count, k = self._store.count, self.images_per_entity or DEFAULT_IMAGES_PER_ENTITY
        behind = [name for name, entry in entries.items() if entry.seen < count]
        if not behind:
            return entries
        first = min(entries[name].seen for name in behind)
        added = score_rows(self._store, np.stack([entries[name].vector for name in behind]), k, first=first)
        for name, hits in zip(behind, added, strict=True):
            old = entries[name]
            late = hits.rows >= old.seen
            rows = np.concatenate([old.rows, hits.rows[late]])
            scores = np.concatenate([old.scores, hits.scores[late]])
            order = np.argsort(rows, kind="stable")
            merged = best_rows(scores[order], rows[order], k)
            entries[name] = _Entry(count, old.vector, *merged)
        return entries

    def _entries(self, names: Sequence[str]) -> dict[str, _Entry]:
        found: dict[str, _Entry] = {}
        query = "SELECT seen, vector, rows, scores FROM entity WHERE entity = ?"
        with self._store.reading() as connection:
            for name in names:
                row = connection.execute(query, (name,)).fetchone()
                if row is not None:
                    found[name] = _Entry(
                        row[0],
                        np.frombuffer(row[1], "<f4"),
                        np.frombuffer(row[2], "<i4").astype(np.int64),
                        np.frombuffer(row[3], "<f4"),
                    )
        return found

    def _put(self, entries: Iterable[tuple[str, _Entry]]) -> None:
        with self._store.writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO entity VALUES (?, ?, ?, ?, ?)",
                [
                    (
                        name,
                        entry.seen,
                        entry.vector.astype("<f4").tobytes(),
                        entry.rows.astype("<i4").tobytes(),
                        entry.scores.astype("<f4").tobytes(),
                    )
                    for name, entry in entries
                ],
            )

    def _claim(self, model: str, images_per_entity: int | None) -> int:
        """Check model and K against the entities there, or record them."""
        meta = self._meta()
        if images_per_entity is not None and images_per_entity < 1:
            raise RetrievalError(f"images per entity is {images_per_entity}; keep at least 1")
        k = images_per_entity or int(meta.get(_IMAGES, DEFAULT_IMAGES_PER_ENTITY))
        if not self.is_empty() and (meta.get(_MODEL), meta.get(_IMAGES)) != (model, str(k)):
            raise RetrievalError(
                f"the entities of store {self._store.path} were made by text model {meta.get(_MODEL)} with "
                f"{meta.get(_IMAGES)} images each, not by {model} with {k}; add with those, or clear them first"
            )
        with self._store.writing() as connection:
            for key, value in ((_MODEL, model), (_IMAGES, str(k))):
                connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        return k

    def clear(self) -> None:
        """Remove all entities."""
        with self._store.writing() as connection:
            connection.execute("DELETE FROM entity")

    def _meta(self) -> dict[str, str]:
        with self._store.reading() as connection:
            return dict(connection.execute("SELECT key, value FROM meta"))
