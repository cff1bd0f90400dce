"""What the retrieval node does, without the node: searches, indexing, adding images, figures of the index."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mca_perception_msgs.action import BuildIndex
from mca_perception_msgs.msg import ImageHit, SearchTiming
from mca_perception_msgs.srv import AddImages, IndexInfo, SearchImages

from mca_perception.errors import BundleError, RetrievalError
from mca_perception.retrieval.documents import Document
from mca_perception.retrieval.encoder import DualEncoder
from mca_perception.retrieval.entity_index import EntityIndex
from mca_perception.retrieval.indexing import IndexCounts, Progress, index_images
from mca_perception.retrieval.retriever import DEFAULT_TOP_N, Answer, Retriever, SearchOptions, open_retriever
from mca_perception.retrieval.sources import open_source
from mca_perception.retrieval.store import ImageRecord, RetrievalStore
from mca_perception.ros.images import decode_compressed
from mca_perception.ros.watchdog import may_take_long

__all__ = ["RetrievalService", "to_document", "to_feedback"]

MAX_IMAGES = 32
"""Images in one call of `add_images`."""
PICTURES = "pictures"


class RetrievalService:
    """One index folder: searched by many, changed by one at a time. The folder may come into being later.

    Args:
        store: folder of the index.
        model: bundle for searches and new images; empty takes the one that made the index.
        back_end: for scans of all images.
        location: of Qdrant.
        spacy: folder of a spaCy pipeline, or empty.
        summariser: folder of a model for summaries, or empty.
        visual_share: see :class:`~mca_perception.retrieval.retriever.SearchOptions`.
        threads: of one operator in ONNX Runtime.
    """

    def __init__(
        self,
        store: Path,
        *,
        model: str = "",
        back_end: str = "exact",
        location: str = "",
        spacy: str = "",
        summariser: str = "",
        visual_share: float = 1.0,
        threads: int | None = None,
    ) -> None:
        self.store = store
        self._visual_share = visual_share
        self._model, self._threads = model, threads
        self._options: dict[str, Any] = {
            "back_end": back_end,
            "location": location or None,
            "spacy": spacy or None,
            "summariser": summariser or None,
        }
        self._retriever: Retriever | None = None
        self._lock = threading.RLock()

    def open(self) -> Retriever:
        """The retriever of the index, opened at the first call that finds the index.

        Raises:
            McaError: there is no index yet, or it or a model cannot be used.
        """
        with self._lock:
            if self._retriever is None:
                with may_take_long():
                    self._retriever = open_retriever(
                        self.store, model=self._model or None, threads=self._threads, **self._options
                    )
            return self._retriever

    def search(self, request: SearchImages.Request, response: SearchImages.Response) -> None:
        """Answer a search.

        Raises:
            McaError: the document, the options or the index cannot be used, or time is up.
        """
        options = SearchOptions(
            top_n=request.top_n or DEFAULT_TOP_N,
            entities=tuple(request.entities) or None,
            use_summary=request.use_summary,
            visual_share=self._visual_share,
            timeout_s=request.timeout_ms / 1000 if request.timeout_ms else None,
        )
        answer = self.open().retrieve(to_document(request), options)
        fill_answer(answer, response)

    def add_images(self, request: AddImages.Request, response: AddImages.Response) -> None:
        """Add images that came in a message; their pictures are kept in the index folder.

        Raises:
            McaError: an image or id cannot be used, or another process writes to the index.
        """
        ids, pictures = list(request.image_ids), request.images
        if not 1 <= len(ids) <= MAX_IMAGES or len(ids) != len(pictures):
            raise RetrievalError(
                f"the request has {len(ids)} ids and {len(pictures)} images; give 1 to {MAX_IMAGES} of both"
            )
        encoder = self._encoder()
        vectors = encoder.encode_images([decode_compressed(picture) for picture in pictures])
        with self._writing(self.store, encoder) as store:
            if known := store.known(ids):
                raise RetrievalError(f"image {min(known)!r} is in the index already; choose another id")
            records = [
                ImageRecord(name, str(self._keep(bytes(picture.data))))
                for name, picture in zip(ids, pictures, strict=True)
            ]
            bundle = {} if "bundle" in store.meta else {"bundle": str(encoder.bundle.path.resolve())}
            store.append(records, vectors, facts=bundle)
            response.image_count, response.index_version = store.count, store.version

    def info(self, request: IndexInfo.Request, response: IndexInfo.Response) -> None:
        """Tell what the index holds.

        Raises:
            McaError: there is no index, or it cannot be read.
        """
        response.path = str(self.store)
        retriever = self.open()
        store = retriever.store
        store.refresh()
        response.image_count, response.skipped_count = store.count, len(store.skipped())
        response.entity_count = len(retriever.entities)
        response.images_per_entity = retriever.entities.images_per_entity or 0
        response.dimension, response.number_format = store.file.dimension, store.file.dtype
        response.bytes = sum(path.stat().st_size for path in self.store.rglob("*") if path.is_file())
        response.index_version, response.image_model = store.version, store.image_model
        response.model = retriever.encoder.name
        response.finished = store.is_finished()

    def build(
        self,
        goal: BuildIndex.Goal,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> tuple[IndexCounts, BuildIndex.Result]:
        """Index a source; searches go on meanwhile and find what is done.

        Raises:
            McaError: source, index or model cannot be used, or another process writes to the index.
        """
        encoder = self._encoder()
        folder = Path(goal.index) if goal.index else self.store
        source = open_source(goal.source)
        with self._writing(folder, encoder) as store:
            counts = index_images(
                source,
                store,
                encoder,
                resume=goal.resume,
                bundle=str(encoder.bundle.path.resolve()),
                progress=progress,
                cancelled=cancelled,
            )
            if not counts.cancelled:
                progress(Progress("entities", store.count, store.count, counts.skipped.total()))
                EntityIndex(store).update()
            result = BuildIndex.Result(
                success=not counts.cancelled,
                message=_left_out(counts),
                indexed=store.count,
                skipped=len(store.skipped()),
                index_version=store.version,
                elapsed_s=counts.seconds,
            )
        return counts, result

    def close(self) -> None:
        """Close the index."""
        with self._lock:
            if self._retriever is not None:
                self._retriever.store.close()
                self._retriever = None

    def _encoder(self) -> DualEncoder:
        with self._lock:
            encoder = self._retriever.encoder if self._retriever else None
        if isinstance(encoder, DualEncoder):
            return encoder
        model = self._model
        if not model:
            with RetrievalStore.open(self.store) as store:
                model = store.meta.get("bundle", "")
        if not model:
            raise BundleError("the node has no model; start it with the parameter model")
        with may_take_long():
            return DualEncoder.from_bundle(model, threads=self._threads)

    def _writing(self, folder: Path, encoder: DualEncoder) -> RetrievalStore:
        return RetrievalStore.write(
            folder, image_model=encoder.image_fingerprint, dimension=encoder.dimension
        )

    def _keep(self, content: bytes) -> Path:
        """A picture as a file named after its content."""
        folder = self.store / PICTURES
        path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.img"
        try:
            folder.mkdir(exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(content)
            part.replace(path)
        except OSError as error:
            raise RetrievalError(
                f"{path} cannot be written ({error.strerror}); make room and try again"
            ) from error
        return path


def to_document(request: SearchImages.Request) -> Document:
    """The document of a request."""
    return Document(
        text=request.text,
        page_title=request.page_title,
        section_title=request.section_title,
        hierarchy=tuple(request.hierarchy),
        section_description=request.section_description,
        page_description=request.page_description,
    )


def _left_out(counts: IndexCounts) -> str:
    """What a run did not add, in words."""
    if counts.cancelled:
        return "cancelled; the same goal with resume goes on"
    return ", ".join(f"left out: {count} x {reason}" for reason, count in counts.skipped.items())


def fill_answer(answer: Answer, response: SearchImages.Response) -> None:
    """Put an answer into a response."""
    response.hits = [ImageHit(image_id=hit.image_id, uri=hit.uri, score=hit.score) for hit in answer.hits]
    response.candidate_count, response.full_scan = answer.candidate_count, answer.full_scan
    response.entities_known, response.entities_unknown = answer.entities_known, answer.entities_unknown
    response.summary, response.warnings = answer.summary, answer.warnings
    response.index_version, response.model = answer.index_version, answer.model
    response.timing = SearchTiming(**{f"{stage}_ms": value for stage, value in answer.timing_ms.items()})


def to_feedback(progress: Progress) -> BuildIndex.Feedback:
    """Progress as the action reports it."""
    return BuildIndex.Feedback(
        stage=progress.stage,
        done=progress.done,
        total=progress.total,
        skipped=progress.skipped,
        rate=float(progress.rate),
        remaining_s=float(np.float32(progress.remaining_s)),
    )
