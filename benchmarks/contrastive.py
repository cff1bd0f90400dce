"""Training methods on real photos, at equal budgets: cross-entropy, SupCon, LaCViT, CLCE and SCL-RHE.

Small enough for a processor: all blocks of the bundle's backbone but the last are frozen, and the tokens that they
give for every photo and for a few augmented versions of it are kept, CLS and averages over 2 x 2 cells or the whole
photo (`--cells`). Every method trains the last block, the final normalisation and its own heads on two versions of
each photo, from the same weights, with as many photos, the same optimiser and schedule.

Trained on the `train` photos of 61 classes of the Grocery Store data; the learning rate of each method is chosen on a
tenth of these that is held out then; reported on the `val` photos of these classes. Few-shot episodes take the photos
of the 20 classes that no run has seen. Label errors are look-alikes by the frozen embedding, in the training photos.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import torch
from support.contrastive_photos import GRID, Photos, input_hash, load_photos, open_backbone
from support.contrastive_tables import judge_claims, summarise, tables
from support.contrastive_training import HEAVY_NOISE, HEAVY_NOISE_METHODS, METHODS, VARIANTS, Settings, run

from mca_perception.backbone import BEiT3
from mca_perception.cli import reports
from mca_perception.datasets.grocery import is_grocery
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.errors import McaError
from mca_perception.training.hardware import flushed_denormals

NAME = "contrastive"


def plan(options: argparse.Namespace, rates: dict[str, float]) -> list[Settings]:
    """All runs, cell by cell: what is finished can be compared over all seeds."""
    noisy = [(options.noise_batch, noise) for noise in options.noise if noise]
    plain = [(batch, 0.0) for batch in options.batches]
    cells = [*plain[:1], *noisy[:1], *plain[1:], *noisy[1:]]
    runs = [(method, batch, noise) for batch, noise in cells for method in METHODS]
    further = [(name, options.noise_batch, noise) for name, (_, _, noise) in VARIANTS.items()]
    further += [(method, options.noise_batch, HEAVY_NOISE) for method in HEAVY_NOISE_METHODS]
    first = len(METHODS) * 2
    return [
        Settings(method, batch, noise, seed, rates[VARIANTS.get(method, (method,))[0]], options.epochs)
        for method, batch, noise in [*runs[:first], *further, *runs[first:]]
        for seed in options.seeds
    ]


def choose_rates(
    options: argparse.Namespace, photos: Photos, backbone: BEiT3, document: dict[str, Any], path: Path
) -> dict[str, float]:
    """The learning rate of each method that is best on held-out training photos, at one batch size and seed."""
    tried: dict[str, dict[str, float]] = document["choice"]
    for method in METHODS:
        for lr in options.lr if method != "frozen" else options.lr[:1]:
            if f"{lr:g}" not in tried.setdefault(method, {}):
                settings = Settings(method, options.noise_batch, 0.0, 0, lr, options.epochs)
                tried[method][f"{lr:g}"] = run(photos, backbone, settings, choosing=True)["top1"]
                reports.write_json(path, document)
    return {method: float(max(scores, key=lambda lr: scores[lr])) for method, scores in tried.items()}


def save(path: Path, document: dict[str, Any]) -> None:
    """Write the runs and what follows from them."""
    document["summary"], document["claims"] = summarise(document["runs"]), judge_claims(document["runs"])
    reports.write_json(path, document)


def numbers(kind: type) -> Any:
    """Reader of comma-separated numbers."""
    return lambda text: [kind(part) for part in text.split(",")]


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=Path("models/nano"), help="bundle whose backbone is trained on"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--data", type=Path, help="folder of the Grocery Store data set")
    parser.add_argument("--batches", type=numbers(int), default=[64, 128, 32])
    parser.add_argument("--noise", type=numbers(float), default=[0.05, 0.2, 0.1])
    parser.add_argument("--noise-batch", type=int, default=64)
    parser.add_argument("--seeds", type=numbers(int), default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument(
        "--lr", type=numbers(float), default=[1e-3, 3e-3], help="to choose from on held-out photos"
    )
    parser.add_argument("--size", type=int, default=96, help="pixels of a photo's side")
    parser.add_argument("--versions", type=int, default=3, help="augmented versions per training photo")
    parser.add_argument(
        "--report", action="store_true", help="print the tables of what is there, train nothing"
    )
    parser.add_argument(
        "--cells", type=int, choices=(1, GRID**2), default=1, help="averages that the block sees"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs") / NAME, help="folder for the kept tokens")
    return parser.parse_args()


def main() -> None:
    """Choose, train and judge; ``contrastive-<device>.json`` is written after each run, and gone on with."""
    options = parse()
    if options.data is None:
        print(
            f"{NAME} trains for half an hour and is left out: give --data to run it (see benchmarks/README.md)"
        )
        return
    if not is_grocery(options.data):
        raise McaError(
            f"--data {options.data} has no classes.csv; give the folder of the Grocery Store data set"
        )
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    facts = reports.environment(packages=("torch",))
    path = reports.new_folder(options.out) / f"{NAME}-{reports.device_slug(facts)}.json"
    bundle = ModelBundle.open(options.model)
    settings = {
        **{
            key: getattr(options, key) for key in ("noise_batch", "epochs", "lr", "size", "versions", "cells")
        },
        "model": reports.model_facts(bundle),
        "input_sha256": input_hash(options.data),
    }
    document: dict[str, Any] = {
        "benchmark": NAME,
        "settings": settings,
        "choice": {},
        "summary": {},
        "runs": {},
    }
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["settings"] != settings:
            raise McaError(f"{path} is of other settings; remove it or choose another --out")
        document = stored
    if options.report:
        print(tables(document["runs"]))
        return
    document |= facts
    with flushed_denormals():
        backbone = open_backbone(bundle)
        photos = load_photos(
            bundle,
            backbone,
            options.data,
            options.work,
            size=options.size,
            versions=options.versions,
            cells=options.cells,
        )
        for entry in plan(options, choose_rates(options, photos, backbone, document, path)):
            if entry.key not in document["runs"]:
                document["runs"][entry.key] = run(photos, backbone, entry)
                save(path, document)
                print(entry.key, f"top1 {document['runs'][entry.key]['top1']:.3f}", flush=True)
    save(path, document)
    print(tables(document["runs"]), path, sep="\n")


if __name__ == "__main__":
    main()
