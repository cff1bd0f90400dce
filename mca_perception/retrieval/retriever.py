"""Documents in, images out: entities, candidates, summary, encoding, scoring, each switchable and timed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.documents import Document
from mca_perception.retrieval.encoder import DualEncoder, TextEncoder
from mca_perception.retrieval.entities import EntityExtractor, PhraseEntities
from mca_perception.retrieval.entity_index import EntityIndex
from mca_perception.retrieval.exact_search import ExactSearch, Hits, Searcher, score_rows
from mca_perception.retrieval.store import RetrievalStore
from mca_perception.retrieval.summary import ExtractiveSummariser, Summariser
from mca_perception.retrieval.visual_sentences import VisualSentences

__all__ = ["MAX_TOP_N", "Answer", "Hit", "Retriever", "SearchOptions", "open_retriever"]

MAX_TOP_N = 1000
DEFAULT_TOP_N = 100
LARGEST_CANDIDATE_SHARE = 0.5
"""With more candidates than this share of all images, a scan of all is quicker than gathering them."""
NEAR_DUPLICATE = 0.98
STAGES = ("entities", "summary", "encode", "candidates", "score")


@dataclass(frozen=True)
class SearchOptions:
    """What a search does.

    Attributes:
        top_n: images to return, 1 to 1000.
        use_entities: score only the images that the document's entities lead to.
        entities: use these instead of those found in the document.
        use_summary: encode a summary of the document; otherwise its titles and beginning.
        visual_share: share of the document's sentences that are read for that, those that the store's images can show;
            above 0, and all of them at 1.
        near_duplicate: cosine from which an image counts as a repetition of a better one and is left out; None keeps
            all.
        timeout_s: give up after this long, between two stages; None waits.
    """

    top_n: int = DEFAULT_TOP_N
    use_entities: bool = True
    entities: tuple[str, ...] | None = None
    use_summary: bool = True
    visual_share: float = 1.0
    near_duplicate: float | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.top_n <= MAX_TOP_N:
            raise RetrievalError(f"top_n is {self.top_n}; ask for 1 to {MAX_TOP_N} images")
        if not 0 < self.visual_share <= 1:
            raise RetrievalError(f"visual_share is {self.visual_share}; give a share above 0, up to 1")


@dataclass(frozen=True)
class Hit:
    """One image: its id, where it lies, its cosine, its row in the store."""

    image_id: str
    uri: str
    score: float
    row: int


@dataclass(frozen=True)
class Answer:
    """Images for a document, best first, and how they were found.

    Attributes:
        candidate_count: images that were scored.
        full_scan: all of them were, as no entity was known, the candidates were too many, or by request.
        entities_known: entities of the document that the index has.
        entities_unknown: the others.
        summary: the text that was encoded.
        warnings: stages that ran in a simpler form.
        index_version: of the store.
        model: ``name@fingerprint`` of the bundle.
        timing_ms: by stage, and ``total``.
    """

    hits: list[Hit]
    candidate_count: int
    full_scan: bool
    entities_known: list[str]
    entities_unknown: list[str]
    summary: str
    warnings: list[str]
    index_version: str
    model: str
    timing_ms: dict[str, float] = field(default_factory=dict)


class Retriever:
    """Searches one store with one text side; with the exact back end from several threads, with others from one.

    Args:
        store: the images.
        encoder: of the texts; its image side must be the store's.
        extractor: of entities; titles and phrases by default.
        summariser: frequency-based by default.
        searcher: for scans of all images; exact by default.

    Raises:
        RetrievalError: the store is of another image side.
    """

    def __init__(
        self,
        store: RetrievalStore,
        encoder: TextEncoder,
        *,
        extractor: EntityExtractor | None = None,
        summariser: Summariser | None = None,
        searcher: Searcher | None = None,
    ) -> None:
        if encoder.image_fingerprint != store.image_model:
            raise RetrievalError(
                f"store {store.path} holds vectors of image model {store.image_model}, {encoder.name} belongs to "
                f"{encoder.image_fingerprint}; search with a bundle of the store's image side, or index again"
            )
        self.store, self.encoder = store, encoder
        self.extractor = extractor or PhraseEntities()
        self.summariser = summariser or ExtractiveSummariser()
        self.searcher = searcher or ExactSearch(store)
        self.entities = EntityIndex(store)
        self._visual = VisualSentences(store, encoder)

    def retrieve(
        self,
        document: Document,
        options: SearchOptions | None = None,
        *,
        image: NDArray[np.uint8] | None = None,
        image_weight: float = 0.5,
    ) -> Answer:
        """Find the images of a document.

        Args:
            document: what to search for.
            options: how.
            image: uint8 ``[H, W, 3]`` RGB, searched for together with the document (composed query).
            image_weight: its share in the query, 0 to 1.

        Raises:
            RetrievalError: the document is empty or too long, the store is empty, or time is up.
        """
        document.check()
        options = options or SearchOptions()
        clock = _Clock(options.timeout_s)
        if self.store.refresh():
            self.searcher.refresh()
        if not self.store.count:
            raise RetrievalError(f"store {self.store.path} holds no images; index some first")
        warnings: list[str] = []
        with clock.stage("entities"):
            wanted = self._wanted(document, options, warnings)
        with clock.stage("candidates"):
            found = self.entities.lookup(wanted)
        with clock.stage("summary"):
            text = self._text(document, options, warnings)
        with clock.stage("encode"):
            query = self.encoder.encode_texts([text])
            if image is not None:
                query = self._composed(query, image, image_weight)
        full_scan = not 0 < len(found.rows) <= LARGEST_CANDIDATE_SHARE * self.store.count
        with clock.stage("score"):
            hits = self._score(query, options, None if full_scan else found.rows)
            records = self.store.records(hits.rows.tolist())
        return Answer(
            hits=[
                Hit(record.image_id, record.uri, float(score), int(row))
                for record, score, row in zip(records, hits.scores, hits.rows, strict=True)
            ],
            candidate_count=self.store.count if full_scan else len(found.rows),
            full_scan=full_scan,
            entities_known=found.known,
            entities_unknown=found.unknown,
            summary=text,
            warnings=warnings,
            index_version=self.store.version,
            model=self.encoder.name,
            timing_ms=clock.milliseconds(),
        )

    def two_steps(self, document: Document, options: SearchOptions | None = None) -> Iterator[Answer]:
        """A quick answer from the document's beginning, then the one from its summary."""
        options = options or SearchOptions()
        yield self.retrieve(document, replace(options, use_summary=False))
        if options.use_summary:
            yield self.retrieve(document, options)

    def _wanted(self, document: Document, options: SearchOptions, warnings: list[str]) -> list[str]:
        if not options.use_entities or self.entities.is_empty():
            return []
        if options.entities is not None:
            return list(options.entities)
        if self.extractor.is_simple:
            warnings.append(f"entities: {self.extractor.name} instead of a trained recogniser")
        return self.extractor.extract(document)

    def _text(self, document: Document, options: SearchOptions, warnings: list[str]) -> str:
        document = self._visual.keep(document, options.visual_share)
        if not options.use_summary:
            return document.plain()
        if self.summariser.is_simple:
            warnings.append(f"summary: {self.summariser.name} instead of a trained summariser")
        return self.summariser.summarise(document)

    def _composed(
        self, query: NDArray[np.float32], image: NDArray[np.uint8], weight: float
    ) -> NDArray[np.float32]:
        if not 0 <= weight <= 1:
            raise RetrievalError(f"image weight is {weight}; give 0 to 1")
        if not isinstance(self.encoder, DualEncoder):
            raise RetrievalError("a query with an image needs a bundle with an image side")
        mixed = (1 - weight) * query + weight * self.encoder.encode_images([image])
        return np.asarray(mixed / max(float(np.linalg.norm(mixed)), 1e-12), np.float32)

    def _score(
        self, query: NDArray[np.float32], options: SearchOptions, rows: NDArray[np.int64] | None
    ) -> Hits:
        # Repetitions are removed afterwards, so more is looked at.
        wanted = options.top_n if options.near_duplicate is None else 3 * options.top_n
        if rows is None:
            (hits,) = self.searcher.search(query, wanted)
        else:
            (hits,) = score_rows(self.store, query, wanted, rows=rows)
        if options.near_duplicate is None:
            return hits
        vectors = self.store.vectors(hits.rows)
        kept: list[int] = []
        for i in range(len(hits.rows)):
            if not kept or (vectors[kept] @ vectors[i]).max() < options.near_duplicate:
                kept.append(i)
        return Hits(hits.rows[kept][: options.top_n], hits.scores[kept][: options.top_n])


class _Clock:
    """Time of the stages, and the moment at which a search gives up."""

    def __init__(self, timeout_s: float | None) -> None:
        self._start = time.perf_counter()
        self._timeout_s = timeout_s
        self._stages = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage; time that is up is noticed at its beginning."""
        start = time.perf_counter()
        if self._timeout_s is not None and start - self._start > self._timeout_s:
            raise RetrievalError(
                f"no answer within {self._timeout_s:g} s, stopped before stage {name}: allow more time, or leave the "
                "summary out"
            )
        yield
        self._stages[name] = (time.perf_counter() - start) * 1000

    def milliseconds(self) -> dict[str, float]:
        """Time by stage, and in all."""
        return {**self._stages, "total": (time.perf_counter() - self._start) * 1000}


def open_retriever(
    store: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    spacy: str | os.PathLike[str] | None = None,
    summariser: str | os.PathLike[str] | None = None,
    back_end: str = "exact",
    location: str | None = None,
    threads: int | None = None,
) -> Retriever:
    """Open a store with everything that a search needs.

    Args:
        store: its folder.
        model: bundle whose text side encodes the queries; by default that which indexed the images.
        tokenizer: vocabulary of a bundle without.
        spacy: folder of a spaCy pipeline for entities.
        summariser: folder of a model of transformers for summaries.
        back_end: one of :data:`~mca_perception.retrieval.search.BACK_ENDS`.
        location: of Qdrant.
        threads: of one operator in ONNX Runtime.

    Raises:
        RetrievalError: store or a model cannot be used, or they do not fit.
        BundleError: the bundle is missing or damaged.
    """
    from mca_perception.retrieval.entities import SpacyEntities
    from mca_perception.retrieval.search import open_searcher
    from mca_perception.retrieval.summary import TransformersSummariser

    opened = RetrievalStore.open(store)
    try:
        bundle = model or opened.meta.get("bundle")
        if not bundle:
            raise RetrievalError(f"store {store} does not say which bundle made it; name one with --model")
        return Retriever(
            opened,
            DualEncoder.from_bundle(bundle, tokenizer=tokenizer, threads=threads),
            extractor=SpacyEntities(spacy) if spacy else None,
            summariser=TransformersSummariser(summariser) if summariser else None,
            searcher=open_searcher(opened, back_end, location=location),
        )
    except BaseException:
        opened.close()
        raise
