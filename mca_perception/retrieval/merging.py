"""Several machines, one index: each encodes its share of a source into its own store, then the stores are joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.sources import Entry, ImageSource
from mca_perception.retrieval.store import ImageRecord, RetrievalStore

__all__ = ["Share", "merge_stores", "parse_share"]

MAX_SHARES = 4096
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Share:
    """Every ``total``-th image of another source, from number ``number`` on; shares together are the whole.

    Attributes:
        source: the whole.
        number: 1 to ``total``.
        total: how many shares there are.
    """

    source: ImageSource
    number: int
    total: int

    @property
    def description(self) -> str:
        """Which share of what."""
        return f"share {self.number}/{self.total} of {self.source.description}"

    def __len__(self) -> int:
        return len(range(self.number - 1, len(self.source), self.total))

    def records(self) -> Iterator[Sequence[ImageRecord]]:
        """Ids and places of the share."""
        position = 0
        for group in self.source.records():
            yield [record for i, record in enumerate(group, position) if i % self.total == self.number - 1]
            position += len(group)

    def entries(self, wanted: set[str] | None = None) -> Iterator[Entry]:
        """Images of the share."""
        if wanted is None:
            wanted = {record.image_id for group in self.records() for record in group}
        return self.source.entries(wanted)


def parse_share(text: str) -> tuple[int, int]:
    """Number and total of a share written ``2/8``.

    Raises:
        RetrievalError: it is written otherwise, or out of range.
    """
    number, separator, total = text.partition("/")
    if separator and number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total) <= MAX_SHARES:
        return int(number), int(total)
    raise RetrievalError(
        f"share {text!r} is not I/N with 1 <= I <= N <= {MAX_SHARES}; write 1/8 for the first of eight"
    )


def merge_stores(
    target: RetrievalStore,
    sources: Sequence[RetrievalStore],
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, int]:
    """Add the images of finished stores to another one, in their order. Goes on where an earlier call stopped.

    Args:
        target: opened for writing.
        sources: stores of the same image side. Their entities are not taken over: lists hold rows of one store.
        progress: told how many images have been handled.

    Returns:
        How many images were ``added`` and how many were there ``already``.

    Raises:
        RetrievalError: a store is of another image side or width, not finished, or the target cannot be written.
    """
    counts = {"added": 0, "already": 0}
    for source in sources:
        if (source.image_model, source.file.dimension) != (target.image_model, target.file.dimension):
            raise RetrievalError(
                f"store {source.path} is of image model {source.image_model}, {target.path} of {target.image_model}; "
                "join stores of one image side"
            )
        if not source.is_finished():
            raise RetrievalError(f"store {source.path} is not finished; index its share to the end first")
    for source in sources:
        for start in range(0, source.count, _ROWS_AT_ONCE):
            rows = list(range(start, min(start + _ROWS_AT_ONCE, source.count)))
            records = source.records(rows)
            known = target.known([record.image_id for record in records])
            new = [
                (row, record)
                for row, record in zip(rows, records, strict=True)
                if record.image_id not in known
            ]
            vectors = source.vectors([row for row, _ in new])
            target.append([record for _, record in new], vectors, facts=_bundle_of(source, target))
            counts["added"] += len(new)
            counts["already"] += len(rows) - len(new)
            progress(sum(counts.values()))
        target.append([], source.vectors([]), source.skipped())
    return counts


def _bundle_of(source: RetrievalStore, target: RetrievalStore) -> dict[str, str]:
    """Where the bundle lies, for a target that does not know it yet."""
    if "bundle" in target.meta or "bundle" not in source.meta:
        return {}
    return {"bundle": source.meta["bundle"]}
