"""Descriptions to natural photos of the Grocery Store data set: what each part of CFIR does, and what caching saves.

One dual encoder is the start of the trained rows; say in `--note` what it has seen. From it the language side alone is
trained against cached image vectors, and both sides, three seeds each, on the photos of `train`. `--zero-shot` names
runs that have seen neither photos nor descriptions of the data set, such as those of `cfir_synthesised` with several
seeds: they are judged as they are, with `--captions` on the held-out captions of their own data too, and so is a random
order. Figures are of `--split`, which chooses nothing. Every model is judged with summaries and without, with and
without the entity index, and by a graph index instead of a scan. Results are kept in `--work` as they come: run it
again to go on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from support.kept_results import kept

from mca_perception.backbone import normalise
from mca_perception.backbone.tokenizer import BEiT3Tokenizer
from mca_perception.cli import reports
from mca_perception.datasets.images import resize_square
from mca_perception.datasets.pairs import read_pairs
from mca_perception.pretraining.model import PretrainingHeads
from mca_perception.retrieval.documents import Document
from mca_perception.retrieval.entities import PhraseEntities
from mca_perception.retrieval.entity_index import EntityIndex
from mca_perception.retrieval.evaluation import FileSource, GroceryQueries, evaluate, read_grocery_queries
from mca_perception.retrieval.indexing import index_images
from mca_perception.retrieval.metrics import ranking_metrics
from mca_perception.retrieval.retriever import Retriever, SearchOptions
from mca_perception.retrieval.search import open_searcher
from mca_perception.retrieval.store import RetrievalStore
from mca_perception.training.hardware import flushed_denormals
from mca_perception.training.loop import train
from mca_perception.training.model import PerceptionModel, build
from mca_perception.training.recipe import Recipe, load_recipe
from mca_perception.training.run import load_run

NAME = "grocery_retrieval"
SEEDS = (0, 1, 2)
METRICS = ("mrr@10", "recall@10", "recall@100", "hit@1")
PER_ENTITY = (20, 50)
TIMED_STEPS = 6
BATCH = 32
RANDOM_ORDERS = 200
VARIANTS: dict[str, dict[str, Any]] = {
    "summary, scan": {},
    "beginning, scan": {"summary": False},
    **{f"summary, entities K={k}": {"per_entity": k} for k in PER_ENTITY},
    "summary, HNSW": {"back_end": "faiss-hnsw"},
}


class TorchEncoder:
    """A model in training as the encoder of a store; spares the export."""

    name = "benchmark"

    def __init__(self, model: PerceptionModel, recipe: Recipe, name: str) -> None:
        section = recipe.retrieval or recipe.pretraining
        assert section is not None
        assert section.tokenizer is not None
        (heads,) = model.heads.values()
        assert isinstance(heads, PretrainingHeads)
        self._model, self._heads, self._section = model.eval(), heads, section
        self._tokenizer = BEiT3Tokenizer(section.tokenizer)
        self.image_fingerprint = self.text_fingerprint = name
        self.dimension = heads.vision_head.out_features

    @torch.inference_mode()
    def encode_images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """See :class:`~mca_perception.retrieval.encoder.ImageEncoder`."""
        squares = np.stack([resize_square(image, self._section.image_size) for image in images])
        batch = torch.from_numpy(np.ascontiguousarray(squares.transpose(0, 3, 1, 2)))
        backbone = self._model.backbone
        states = backbone(normalise(batch, torch.device("cpu"), backbone.normalisation))["encoder_out"]
        return np.asarray(self._heads.embed_images(states).numpy())

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :class:`~mca_perception.retrieval.encoder.TextEncoder`."""
        parts = []
        for start in range(0, len(texts), BATCH):
            tokens = self._tokenizer.batch(list(texts[start : start + BATCH]), self._section.text_length)
            states = self._model.backbone(
                text_ids=torch.from_numpy(tokens.ids), text_padding_mask=torch.from_numpy(tokens.padding_mask)
            )["encoder_out"]
            parts.append(self._heads.embed_texts(states).numpy())
        return np.concatenate(parts)


def index_photos(photos: dict[str, Path], folder: Path, encoder: TorchEncoder) -> RetrievalStore:
    """A store of the photos; one that is there is gone on with."""
    store = RetrievalStore.write(
        folder, image_model=encoder.image_fingerprint, dimension=encoder.dimension, dtype="float32"
    )
    index_images(FileSource(photos, str(folder)), store, encoder, batch=BATCH)
    return store


def judge(
    model: PerceptionModel, recipe: Recipe, folder: Path, queries: GroceryQueries, train_texts: Any
) -> dict[str, Any]:
    """All variants of one model."""
    encoder = TorchEncoder(model, recipe, folder.name)
    results: dict[str, Any] = {}
    start = time.process_time()
    with index_photos(queries.photos, folder / "photos.store", encoder) as store:
        encoded = time.process_time() - start
        for variant, settings in VARIANTS.items():
            per_entity = settings.get("per_entity", 0)
            if per_entity:
                EntityIndex(store).clear()
                extractor = PhraseEntities()
                entities = dict.fromkeys(e for text in train_texts for e in extractor.extract(text))
                EntityIndex(store).add(entities, encoder, images_per_entity=per_entity)
            retriever = Retriever(
                store, encoder, searcher=open_searcher(store, settings.get("back_end", "exact"))
            )
            options = SearchOptions(
                top_n=len(queries.photos),
                use_summary=settings.get("summary", True),
                use_entities=per_entity > 0,
            )
            begun = time.process_time()
            run = evaluate(retriever, queries.queries, queries.qrels, METRICS, options)
            results[variant] = {
                **run.metrics,
                "candidates": run.candidates,
                "candidate_recall": run.candidate_recall,
                "full_scans": run.full_scans,
                "cpu_seconds": round(time.process_time() - begun, 3),
            }
    results["encoding_cpu_seconds"] = round(encoded, 3)
    return results


def caption_queries(data: Path, split: str) -> GroceryQueries:
    """Every different caption of a split, and the pictures that carry it."""
    items = [item for item in read_pairs(data).items if item.split == split]
    qrels: dict[str, dict[str, int]] = {}
    for item in items:
        for text in item.texts:
            qrels.setdefault(text, {})[item.id] = 1
    queries = {text: Document(text=text) for text in qrels}
    return GroceryQueries(queries, qrels, {item.id: item.images[0] for item in items})


def judge_zero_shot(
    runs: Sequence[Path], captions: Path | None, work: Path, queries: GroceryQueries, train_texts: Any
) -> dict[str, Any]:
    """All variants of finished runs that never saw the data set, and how well they know their own captions."""
    results: dict[str, Any] = {}
    for run in runs:
        recipe, model, _, log = load_run(run)
        folder = work / f"zero-shot-{recipe.seed}"
        make = partial(judge, model, recipe, folder, queries, train_texts)
        results[folder.name] = kept(work / f"{folder.name}.json", make)
        results[folder.name]["steps"] = log[-1]["step"]
        if captions is not None:
            own = partial(judge_captions, model, recipe, folder, caption_queries(captions, "val"))
            results[folder.name]["own captions"] = kept(work / f"{folder.name}-captions.json", own)
    return results


def judge_captions(
    model: PerceptionModel, recipe: Recipe, folder: Path, queries: GroceryQueries
) -> dict[str, float]:
    """Held-out captions to their pictures, by a scan."""
    encoder = TorchEncoder(model, recipe, folder.name)
    with index_photos(queries.photos, folder / "captions.store", encoder) as store:
        options = SearchOptions(top_n=100, use_summary=False, use_entities=False)
        found = evaluate(Retriever(store, encoder), queries.queries, queries.qrels, METRICS, options).metrics
    by_chance = {f"{name} by chance": value for name, value in chance(queries).items()}
    return {**found, **by_chance, "captions": len(queries.queries), "pictures": len(queries.photos)}


def chance(queries: GroceryQueries) -> dict[str, float]:
    """Mean metrics of random orders."""
    rng = np.random.default_rng(0)
    photos = list(queries.photos)
    found = [
        ranking_metrics(
            queries.qrels, {topic: rng.permutation(photos)[:100].tolist() for topic in queries.qrels}, METRICS
        )
        for _ in range(RANDOM_ORDERS)
    ]
    return {metric: statistics.fmean(run[metric] for run in found) for metric in METRICS}


def trained(recipe: Recipe, folder: Path) -> PerceptionModel:
    """The recipe's model, trained in ``folder``; a run that was stopped goes on."""
    with flushed_denormals():
        torch.manual_seed(recipe.seed)
        model, tasks = build(recipe)
        train(recipe, model, tasks, folder, resume=True)
    return model


def step_times(recipe: Recipe) -> float:
    """Median processor seconds of a training step of a recipe."""
    model, (task,) = build(recipe)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-5)
    times = []
    batches = iter(task.batches(0))
    for _ in range(TIMED_STEPS):
        batch = next(batches)
        start = time.process_time()
        optimiser.zero_grad()
        sum(task.losses(model.backbone, batch, torch.device("cpu")).values()).backward()  # type: ignore[union-attr]
        optimiser.step()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Run what is missing and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="not used: the benchmark trains its own models")
    parser.add_argument("--data", type=Path, help="folder of the data set")
    parser.add_argument("--tokenizer", type=Path, help="beit3.spm")
    parser.add_argument("--start", type=Path, help="finished run of a dual encoder")
    parser.add_argument("--work", type=Path, help="folder for what is in the making")
    parser.add_argument(
        "--zero-shot", type=Path, nargs="*", default=[], help="finished runs that never saw the data set"
    )
    parser.add_argument("--captions", type=Path, help="data set of those runs (mca synth captions)")
    parser.add_argument("--split", default="val")
    parser.add_argument("--note", default="", help="what else has to be known about this run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if None in (options.data, options.tokenizer, options.start, options.work):
        print(f"{NAME} trains and is left out: give --data, --tokenizer, --start and --work to run it")
        return
    options.work.mkdir(parents=True, exist_ok=True)
    queries = read_grocery_queries(options.data, options.split)
    train_queries = read_grocery_queries(options.data, "train")
    texts = list(train_queries.queries.values())
    common = [
        f"init_from={options.start}",
        f"retrieval.data={options.data}",
        f"retrieval.tokenizer={options.tokenizer}",
        "retrieval.workers=0",
    ]

    def recipe(name: str, *more: str) -> Recipe:
        return load_recipe(Path("recipes") / f"cfir_grocery_{name}.yaml", [*common, *more])

    start_recipe = recipe("full")
    store = options.work / "train.store"

    def start() -> dict[str, Any]:
        model, _ = build(start_recipe)
        folder = options.work / "start"
        return judge(model, start_recipe, folder, queries, texts)

    results = {"start": kept(options.work / "start.json", start)}

    def cache() -> dict[str, Any]:
        begun = time.process_time()
        model, _ = build(start_recipe)
        with index_photos(train_queries.photos, store, TorchEncoder(model, start_recipe, "start")) as opened:
            return {"images": opened.count, "cpu_seconds": time.process_time() - begun}

    cached = kept(options.work / "cache.json", cache)
    results |= judge_zero_shot(options.zero_shot, options.captions, options.work, queries, texts)
    language = [f"retrieval.image_vectors={store}"]
    for seed in SEEDS:
        for part, more in (("language", language), ("full", [])):
            chosen = recipe(part, f"seed={seed}", *more)
            folder = options.work / f"{part}-{seed}"
            results[folder.name] = kept(
                options.work / f"{folder.name}.json",
                lambda chosen=chosen, folder=folder: judge(
                    trained(chosen, folder), chosen, folder, queries, texts
                ),
            )
    steps = {
        "full": [],
        "image side frozen, images read": ["retrieval.trainable=language"],
    }
    times = {
        name: kept(
            options.work / f"step-{i}.json", lambda more=more: {"s": step_times(recipe("full", *more))}
        )["s"]
        for i, (name, more) in enumerate(steps.items())
    }
    times["language side, cached vectors"] = kept(
        options.work / "step-cached.json", lambda: {"s": step_times(recipe("language", *language))}
    )["s"]
    first = results["start"]
    scan = first["summary, scan"]["cpu_seconds"]
    report = {
        "benchmark": NAME,
        "note": options.note,
        **reports.environment(("torch", "faiss-cpu")),
        "data": {
            "folder": options.data.name,
            "split": options.split,
            "topics": len(queries.queries),
            "photos": len(queries.photos),
            "training_photos": cached["images"],
        },
        "seeds": list(SEEDS),
        "rows": summarise(results),
        "by_chance": chance(queries),
        "results": results,
        "S1_share_of_evaluation_saved_by_the_cache": 1 - scan / (scan + first["encoding_cpu_seconds"]),
        "S2_cpu_seconds_per_step": times,
    }
    path = options.out / f"{NAME}-{reports.device_slug(report)}.json"
    reports.new_folder(options.out)
    reports.write_json(path, report)
    print(path)


def summarise(results: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation over seeds, by model and variant."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for model in ("zero-shot", "start", "language", "full"):
        runs = [found for name, found in results.items() if name.startswith(model)]
        if not runs:
            continue
        for variant in VARIANTS:
            values = {metric: [run[variant][metric] for run in runs] for metric in METRICS}
            rows.setdefault(model, {})[variant] = {
                **{metric: statistics.fmean(found) for metric, found in values.items()},
                **{f"{metric} sd": statistics.pstdev(found) for metric, found in values.items()},
                "runs": len(runs),
            }
    return rows


if __name__ == "__main__":
    main()
