"""Evaluation of retrieval: rankings of many documents, their metrics, and how long each stage took."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mca_perception.datasets.pairs import read_pairs
from mca_perception.errors import DatasetError
from mca_perception.retrieval.documents import Document
from mca_perception.retrieval.metrics import Qrels, ranking_metrics
from mca_perception.retrieval.retriever import Retriever, SearchOptions
from mca_perception.retrieval.sources import Entry, ImageSource
from mca_perception.retrieval.store import ImageRecord

__all__ = ["FileSource", "GroceryQueries", "RetrievalRun", "Selection", "evaluate", "read_grocery_queries"]


@dataclass(frozen=True)
class RetrievalRun:
    """What an evaluation found.

    Attributes:
        metrics: means over topics.
        rankings: image ids with scores by topic, best first.
        latency_ms: ``p50`` and ``p95`` of a search by stage.
        candidates: mean number of images that were scored.
        candidate_recall: mean share of a topic's relevant images among those scored, an upper bound of recall.
        full_scans: topics for which all images were scored.
        overlap: mean of ``1 - candidates / (entities x K)`` over topics with entities; None without any.
    """

    metrics: dict[str, float]
    rankings: dict[str, list[tuple[str, float]]]
    latency_ms: dict[str, dict[str, float]]
    candidates: float
    candidate_recall: float
    full_scans: int
    overlap: float | None


def evaluate(
    retriever: Retriever,
    queries: Mapping[str, Document],
    qrels: Qrels,
    metrics: Sequence[str],
    options: SearchOptions,
    progress: Callable[[Sequence[str], str], Iterable[str]] = lambda topics, _: topics,
) -> RetrievalRun:
    """Search for every document and compare with what is relevant.

    Args:
        retriever: what to evaluate.
        queries: documents by topic; those without relevant images are left out.
        qrels: relevance by topic and image id.
        metrics: see :func:`~mca_perception.retrieval.metrics.ranking_metrics`.
        options: of every search.
        progress: wraps the loop.
    """
    topics = [topic for topic in queries if any(grade > 0 for grade in qrels.get(topic, {}).values())]
    rankings: dict[str, list[tuple[str, float]]] = {}
    times: list[dict[str, float]] = []
    scored: list[int] = []
    recalls: list[float] = []
    overlaps: list[float] = []
    full_scans = 0
    for topic in progress(topics, "documents"):
        answer = retriever.retrieve(queries[topic], options)
        rankings[topic] = [(hit.image_id, hit.score) for hit in answer.hits]
        times.append(answer.timing_ms)
        scored.append(answer.candidate_count)
        full_scans += answer.full_scan
        relevant = [image for image, grade in qrels[topic].items() if grade > 0]
        recalls.append(1.0)
        candidates = retriever.entities.lookup(answer.entities_known).rows
        if not answer.full_scan:
            rows = set(candidates.tolist())
            places = retriever.store.rows_of(relevant)
            recalls[-1] = sum(places.get(image) in rows for image in relevant) / len(relevant)
        if answer.entities_known:
            asked = len(answer.entities_known) * (retriever.entities.images_per_entity or 1)
            overlaps.append(1 - len(candidates) / asked)
    found = {topic: [image for image, _ in ranking] for topic, ranking in rankings.items()}
    return RetrievalRun(
        metrics=ranking_metrics({topic: qrels[topic] for topic in topics}, found, metrics),
        rankings=rankings,
        latency_ms=_percentiles(times),
        candidates=float(np.mean(scored)),
        candidate_recall=float(np.mean(recalls)),
        full_scans=full_scans,
        overlap=float(np.mean(overlaps)) if overlaps else None,
    )


@dataclass(frozen=True)
class GroceryQueries:
    """The Grocery Store data set as a retrieval task: a product's description asks for the photos of the product.

    Attributes:
        queries: descriptions by the number of the description.
        qrels: photos by description.
        photos: files of the split by id.
    """

    queries: dict[str, Document]
    qrels: dict[str, dict[str, int]]
    photos: dict[str, Path]


def read_grocery_queries(data: Path, split: str) -> GroceryQueries:
    """Descriptions and natural photos of a split; products with the same description are one query.

    Raises:
        DatasetError: the folder cannot be used or has no such split.
    """
    items = [item for item in read_pairs(data).items if item.split == split]
    if not items:
        raise DatasetError(f"{data} has no photos of split {split!r}; there is one for each NAME.txt")
    numbers: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for item in items:
        topic = numbers.setdefault(item.texts[0], f"d{len(numbers):03d}")
        qrels.setdefault(topic, {})[item.id] = 1
    queries = {topic: Document(text=text) for text, topic in numbers.items()}
    return GroceryQueries(queries, qrels, {item.id: item.images[0] for item in items})


@dataclass(frozen=True)
class FileSource:
    """Image files with given ids, as a source of an index."""

    files: Mapping[str, Path]
    description: str

    def __len__(self) -> int:
        return len(self.files)

    def records(self) -> Iterator[Sequence[ImageRecord]]:
        """All ids and places."""
        yield [ImageRecord(name, str(file.resolve())) for name, file in self.files.items()]

    def entries(self, wanted: set[str] | None = None) -> Iterator[Entry]:
        """The files in their order."""
        for group in self.records():
            yield from (Entry(record) for record in group if wanted is None or record.image_id in wanted)


@dataclass(frozen=True)
class Selection:
    """Some images of another source."""

    source: ImageSource
    chosen: frozenset[str]

    @property
    def description(self) -> str:
        """Where the images are."""
        return f"{len(self.chosen)} of {self.source.description}"

    def __len__(self) -> int:
        return len(self.chosen)

    def records(self) -> Iterator[Sequence[ImageRecord]]:
        """Those chosen, in the order of the source."""
        for group in self.source.records():
            yield [record for record in group if record.image_id in self.chosen]

    def entries(self, wanted: set[str] | None = None) -> Iterator[Entry]:
        """Those chosen, in the order of the source."""
        return self.source.entries(set(self.chosen) if wanted is None else wanted)


def _percentiles(times: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    stages = times[0] if times else {}
    return {
        stage: {
            name: round(float(np.percentile([entry[stage] for entry in times], share)), 3)
            for name, share in (("p50", 50), ("p95", 95))
        }
        for stage in stages
    }
