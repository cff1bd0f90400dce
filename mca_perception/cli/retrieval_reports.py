"""Evaluations of retrieval: run them, write figures, rankings and a report."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import typer

from mca_perception.cli import reports
from mca_perception.datasets.atomic import documents_of, pool_of, read_qrels, write_run
from mca_perception.datasets.images import read_rgb
from mca_perception.datasets.karpathy import read_karpathy
from mca_perception.errors import RetrievalError
from mca_perception.pretraining.metrics import image_text_recall
from mca_perception.retrieval.documents import Document
from mca_perception.retrieval.encoder import MAX_BATCH, DualEncoder
from mca_perception.retrieval.entities import PhraseEntities
from mca_perception.retrieval.entity_index import EntityIndex
from mca_perception.retrieval.evaluation import (
    FileSource,
    RetrievalRun,
    Selection,
    evaluate,
    read_grocery_queries,
)
from mca_perception.retrieval.indexing import IndexCounts, index_images
from mca_perception.retrieval.retriever import Retriever, SearchOptions
from mca_perception.retrieval.search import open_searcher
from mca_perception.retrieval.sources import ImageSource, open_source
from mca_perception.retrieval.store import RetrievalStore

__all__ = ["evaluate_atomic", "evaluate_grocery", "evaluate_image_text"]

GROCERY_METRICS = ("mrr@10", "recall@10", "recall@100", "ndcg@10", "hit@1")
ATOMIC_METRICS = ("mrr@10", "recall@10", "recall@1000", "ndcg@10")
MAX_TOP_N = 1000
_PACKAGES = ("faiss-cpu", "ir-measures", "sentencepiece")


def evaluate_grocery(
    data: Path,
    split: str,
    model: Path,
    out: Path,
    *,
    summary: bool,
    visual_share: float,
    per_entity: int,
    back_end: str,
) -> dict[str, Any]:
    """Descriptions of products against the natural photos of a split; returns what ``metrics.json`` holds.

    Raises:
        McaError: data, bundle or folder cannot be used.
    """
    queries = read_grocery_queries(data, split)
    encoder = DualEncoder.from_bundle(model)
    reports.new_folder(out)
    with tempfile.TemporaryDirectory() as folder:
        source = FileSource(queries.photos, f"{data}, {split}")
        store, counts = _indexed(source, Path(folder) / "store", encoder, "float32")
        images = store.count
        with store:
            if per_entity:
                train = read_grocery_queries(data, "train").queries.values()
                _add_entities(store, encoder, train, per_entity)
            retriever = Retriever(store, encoder, searcher=open_searcher(store, back_end))
            options = _options(summary, visual_share, per_entity)
            with reports.progress_bar() as progress:
                run = evaluate(retriever, queries.queries, queries.qrels, GROCERY_METRICS, options, progress)
    settings = {
        "summary": summary,
        "visual_share": visual_share,
        "per_entity": per_entity,
        "back_end": back_end,
    }
    return _write(out, "grocery-retrieval", data, split, encoder, run, images, counts, settings)


def _options(summary: bool, visual_share: float, per_entity: int) -> SearchOptions:
    return SearchOptions(
        top_n=MAX_TOP_N, use_summary=summary, visual_share=visual_share, use_entities=per_entity > 0
    )


def evaluate_atomic(
    data: Path,
    split: str,
    model: Path,
    out: Path,
    *,
    pool: str,
    summary: bool,
    visual_share: float,
    per_entity: int,
    back_end: str,
    entity_model: Path | None,
    limit: int | None,
) -> dict[str, Any]:
    """Texts of a split of AToMiC against a pool of images; returns what ``metrics.json`` holds.

    The store of image vectors stays in the folder, so that a run that was stopped goes on, and further runs with the
    same image side encode nothing again.

    Raises:
        McaError: data, bundle or folder cannot be used, or ir_measures is not installed.
    """
    qrels = read_qrels(data, split)
    if limit is not None:
        qrels = dict(list(qrels.items())[:limit])
    encoder = DualEncoder.from_bundle(model)
    reports.new_folder(out)
    source: ImageSource = open_source(data / "images")
    chosen = pool_of(data, pool, split)
    if chosen is not None:
        source = Selection(source, frozenset(chosen))
    texts = {name: Document(**fields) for name, fields in documents_of(data, set(qrels)).items()}
    store, counts = _indexed(source, out / f"store-{pool}", encoder, "float16")
    images = store.count
    with store:
        if per_entity:
            wanted = set(read_qrels(data, "train"))
            train = (Document(**fields) for fields in documents_of(data, wanted).values())
            pretrained = encoder if entity_model is None else DualEncoder.from_bundle(entity_model)
            _add_entities(store, pretrained, train, per_entity)
        retriever = Retriever(store, encoder, searcher=open_searcher(store, back_end))
        options = _options(summary, visual_share, per_entity)
        with reports.progress_bar() as progress:
            run = evaluate(retriever, texts, qrels, ATOMIC_METRICS, options, progress)
    write_run(out / "run.txt", run.rankings)
    settings = {
        "pool": pool,
        "summary": summary,
        "visual_share": visual_share,
        "per_entity": per_entity,
        "back_end": back_end,
        "texts_missing": len(qrels.keys() - texts.keys()),
        "ir_measures": _ir_measures(qrels, run),
    }
    return _write(out, "atomic", data, split, encoder, run, images, counts, settings)


def evaluate_image_text(
    data: Path, images: Path | None, split: str, model: Path, out: Path, *, limit: int | None
) -> dict[str, Any]:
    """Captions against images in both directions; returns what ``metrics.json`` holds.

    Raises:
        McaError: data, bundle or folder cannot be used.
    """
    read = read_karpathy(data, split, images=images, limit=limit)
    encoder = DualEncoder.from_bundle(model)
    reports.new_folder(out)
    parts = []
    with reports.progress_bar() as progress:
        for start in progress(range(0, len(read.images), MAX_BATCH), "images"):
            pictures = [
                read_rgb(entry.path, oriented=True) for entry in read.images[start : start + MAX_BATCH]
            ]
            parts.append(encoder.encode_images(pictures))
    captions = [caption for entry in read.images for caption in entry.captions]
    owner = np.repeat(np.arange(len(read.images)), [len(entry.captions) for entry in read.images])
    similarity = np.concatenate(parts) @ encoder.encode_texts(captions).T
    metrics: dict[str, Any] = {
        "task": "image-text",
        **image_text_recall(similarity, owner),
        "images": len(read.images),
        "captions": len(captions),
        "model": _facts(encoder),
        "data": {"folder": data.name, "split": split, "limit": limit},
        "skipped": dict(read.skipped),
        **reports.environment(_PACKAGES),
    }
    names = [f"{way}@{k}" for way in ("ir", "tr") for k in (1, 5, 10)]
    rows = [(name, metrics[name]) for name in names]
    text = f"# Captions and images of {data.name}, {split}\n\n" + reports.table(("hit rate", "value"), rows)
    reports.write_text(out / "report.md", f"{text}\n{reports.machine(metrics)}")
    reports.write_json(out / "metrics.json", metrics)
    typer.echo(f"{reports.summary(metrics, names)} -> {out / 'report.md'}")
    return metrics


def _indexed(
    source: ImageSource, folder: Path, encoder: DualEncoder, dtype: str
) -> tuple[RetrievalStore, IndexCounts]:
    store = RetrievalStore.write(
        folder, image_model=encoder.image_fingerprint, dimension=encoder.dimension, dtype=dtype
    )
    try:
        counts = index_images(source, store, encoder)
        if not store.count:
            raise RetrievalError(f"none of the images of {source.description} can be read; check them")
    except BaseException:
        store.close()
        raise
    return store, counts


def _add_entities(store: RetrievalStore, encoder: DualEncoder, documents: Any, per_entity: int) -> None:
    extractor = PhraseEntities()
    found: dict[str, None] = {}
    for document in documents:
        found |= dict.fromkeys(extractor.extract(document))
    EntityIndex(store).add(found, encoder, images_per_entity=per_entity)


def _ir_measures(qrels: Mapping[str, Mapping[str, int]], run: RetrievalRun) -> dict[str, float]:
    """The same rankings through ir_measures, which would sort equal scores otherwise: ranks take their place."""
    import ir_measures

    names = ("RR@10", "R@10", "R@1000", "nDCG@10")
    scored = {
        topic: {image: float(-rank) for rank, (image, _) in enumerate(ranking)}
        for topic, ranking in run.rankings.items()
    }
    judged = {topic: dict(qrels[topic]) for topic in run.rankings}
    found = ir_measures.calc_aggregate([ir_measures.parse_measure(name) for name in names], judged, scored)
    return {str(measure): float(value) for measure, value in found.items()}


def _facts(encoder: DualEncoder) -> dict[str, str]:
    manifest = encoder.bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "fingerprint": encoder.bundle.fingerprint,
        "image_fingerprint": encoder.image_fingerprint,
        "text_fingerprint": encoder.text_fingerprint,
    }


def _write(
    out: Path,
    task: str,
    data: Path,
    split: str,
    encoder: DualEncoder,
    run: RetrievalRun,
    images: int,
    counts: IndexCounts,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "task": task,
        **run.metrics,
        "topics": len(run.rankings),
        "images": images,
        "candidates": run.candidates,
        "candidate_recall": run.candidate_recall,
        "full_scans": run.full_scans,
        "overlap": run.overlap,
        "latency_ms": run.latency_ms,
        "settings": dict(settings),
        "model": _facts(encoder),
        "data": {"folder": data.name, "split": split},
        "skipped": dict(counts.skipped),
        **reports.environment(_PACKAGES),
    }
    figures = [*run.metrics, "topics", "images", "candidates", "candidate_recall", "full_scans", "overlap"]
    lines = [
        f"# Documents to images: {data.name}, {split}",
        f"Model {metrics['model']['name']} {metrics['model']['version']} (`{metrics['model']['fingerprint']}`).",
        reports.table(("figure", "value"), [(name, metrics[name]) for name in figures]),
        "## Settings\n\n" + reports.table(("setting", "value"), [(n, str(v)) for n, v in settings.items()]),
        "## Left out\n\n" + reports.left_out(metrics),
        "## Latency of a search (ms)\n\n" + reports.latency(metrics),
        reports.machine(metrics),
    ]
    reports.write_text(out / "report.md", "\n\n".join(lines))
    reports.write_json(out / "metrics.json", metrics)
    typer.echo(f"{reports.summary(metrics, list(run.metrics))} -> {out / 'report.md'}")
    return metrics
