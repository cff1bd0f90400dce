"""Fill a store from a source: in batches, each on disk before the next; goes on where it was stopped."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import InvalidImageError, RetrievalError
from mca_perception.retrieval.encoder import ImageEncoder
from mca_perception.retrieval.sources import Entry, ImageSource
from mca_perception.retrieval.store import JOB_DONE, MAX_ID_CHARACTERS, ImageRecord, RetrievalStore

__all__ = ["Encode", "Encoded", "IndexCounts", "Progress", "encode_here", "index_images"]

BATCH = 32
DECODERS = 2
_RATE_SECONDS = 10.0
_UNREADABLE, _REPEATED, _NO_ID = "image not readable", "id that was there before", "id empty or too long"
_ELSEWHERE = "id of an image from another place (index the folder above both, or use another store)"


class Encoded(NamedTuple):
    """An image after the model.

    Attributes:
        record: what is known about it.
        vector: float32 ``[D]``; None where the image cannot be read.
    """

    record: ImageRecord
    vector: NDArray[np.float32] | None


Encode = Callable[[ImageSource, set[str], int], Generator[list[Encoded], None, None]]
"""Encodes the images of a source whose ids are wanted, in the source's order, in batches of a size."""


@dataclass
class IndexCounts:
    """What a run did.

    Attributes:
        added: images that came into the store.
        already: images that were in it, or had been left out, before.
        skipped: images left out, by reason.
        cancelled: whether it was stopped.
        seconds: how long it took.
    """

    added: int = 0
    already: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    cancelled: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        stage: ``scan`` or ``encode``.
        done: images handled, those of earlier runs included.
        total: images in the source; 0 until it has been scanned.
        skipped: images that could not be read, of this run.
        rate: images per second of late.
        remaining_s: seconds to the end at that rate; NaN until known.
    """

    stage: str
    done: int = 0
    total: int = 0
    skipped: int = 0
    rate: float = 0.0
    remaining_s: float = float("nan")


def index_images(
    source: ImageSource,
    store: RetrievalStore,
    encoder: ImageEncoder,
    *,
    encode: Encode | None = None,
    batch: int = BATCH,
    resume: bool = True,
    bundle: str = "",
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> IndexCounts:
    """Add the images of a source that a store does not have.

    Batches are cut at fixed places of the source, so a run that was killed and goes on ends with the same content as
    one that was not.

    Args:
        source: images in a fixed order.
        store: opened for writing.
        encoder: of the images; its fingerprint must be the store's.
        encode: how images come to their vectors; by default with this encoder, in this process.
        batch: images that go through the model and to the disk together.
        resume: go on with a run that did not finish; without it, such a store is refused.
        bundle: where the bundle lies, remembered for searches.
        progress: told after every batch.
        cancelled: asked before every batch; what is done by then stays.

    Raises:
        RetrievalError: the store is of another model, not finished, or cannot be written.
    """
    if encoder.image_fingerprint != store.image_model:
        raise RetrievalError(
            f"store {store.path} is of image model {store.image_model}, not of {encoder.image_fingerprint}; "
            "index into another store"
        )
    if not resume and not store.is_finished():
        raise RetrievalError(
            f"store {store.path} is not finished (source {store.meta['job']}); resume it, or choose another store"
        )
    start = time.perf_counter()
    counts = IndexCounts()
    progress(Progress("scan"))
    wanted = _missing(source, store, counts)
    total = counts.already + len(wanted)
    facts = {"job": source.description, **({"bundle": bundle} if bundle else {})}
    store.append([], np.zeros((0, store.file.dimension), np.float32), facts=facts)
    pace = _Pace()
    with closing((encode or partial(encode_here, encoder))(source, wanted, batch)) as batches:
        while wanted:
            counts.cancelled = cancelled()
            if counts.cancelled or (encoded := next(batches, None)) is None:
                break
            _add(encoded, store, counts, wanted)
            done = total - len(wanted)
            rate = pace.tick(len(encoded))
            remaining = len(wanted) / rate if rate else np.nan
            progress(Progress("encode", done, total, counts.skipped.total(), rate, remaining))
    if not counts.cancelled:
        store.append([], np.zeros((0, store.file.dimension), np.float32), facts={"job": JOB_DONE})
    counts.seconds = time.perf_counter() - start
    return counts


def _missing(source: ImageSource, store: RetrievalStore, counts: IndexCounts) -> set[str]:
    """Ids of the source that the store has not seen; repeated and unusable ids are counted."""
    wanted: set[str] = set()
    for records in source.records():
        known = store.known([record.image_id for record in records])
        for name, uri, _ in records:
            if not name.strip() or len(name) > MAX_ID_CHARACTERS:
                counts.skipped[_NO_ID] += 1
            elif name in wanted:
                counts.skipped[_REPEATED] += 1
            elif known.get(name) in (uri, ""):
                counts.already += 1
            elif name in known:
                counts.skipped[_ELSEWHERE] += 1
            else:
                wanted.add(name)
    return wanted


def encode_here(
    encoder: ImageEncoder, source: ImageSource, wanted: set[str], batch: int
) -> Generator[list[Encoded], None, None]:
    """Encode in this process, while threads read the images; see :data:`Encode`."""
    with ThreadPoolExecutor(DECODERS) as decoders:
        for entries in _batched(source.entries(wanted), batch):
            images = list(decoders.map(_load, entries))
            readable = [image for image in images if image is not None]
            vectors = iter(encoder.encode_images(readable) if readable else ())
            yield [
                Encoded(entry.record, None if image is None else next(vectors))
                for entry, image in zip(entries, images, strict=True)
            ]


def _load(entry: Entry) -> NDArray[np.uint8] | None:
    try:
        return entry.load()
    except InvalidImageError:
        return None


def _add(encoded: list[Encoded], store: RetrievalStore, counts: IndexCounts, wanted: set[str]) -> None:
    """Put a batch into the store; what of it is done is no longer wanted."""
    vectors = np.zeros((len(encoded), store.file.dimension), np.float32)
    records: list[ImageRecord] = []
    skipped: dict[str, str] = {}
    for record, vector in encoded:
        if record.image_id not in wanted:
            continue
        wanted.discard(record.image_id)
        if vector is None:
            skipped[record.image_id] = _UNREADABLE
        else:
            vectors[len(records)] = vector
            records.append(record)
    store.append(records, vectors[: len(records)], skipped)
    counts.added += len(records)
    counts.skipped.update(skipped.values())


def _batched(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    iterator = iter(entries)
    while part := list(islice(iterator, size)):
        yield part


class _Pace:
    """Images per second over the last ten seconds or so."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque([(time.perf_counter(), 0)])

    def tick(self, count: int) -> float:
        """Count images; returns the present rate."""
        now = time.perf_counter()
        self._marks.append((now, self._marks[-1][1] + count))
        while len(self._marks) > 2 and now - self._marks[0][0] > _RATE_SECONDS:
            self._marks.popleft()
        elapsed = now - self._marks[0][0]
        return (self._marks[-1][1] - self._marks[0][1]) / elapsed if elapsed > 0 else 0.0
