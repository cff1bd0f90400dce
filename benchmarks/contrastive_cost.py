"""Cost of a training step of each method: processor time and peak memory, the whole backbone being trained.

Every method trains the backbone of the bundle and its own heads on two views of random images, each in a process of
its own: neither time nor memory depends on the pixels. Two-stage methods are measured in their contrastive stage;
LaCViT's second stage is a step of cross-entropy, the others' trains a linear layer. Memory is the peak of the resident
set above what the process held before its first step, gradients and the optimiser's state included; in these processes
the C library returns every freed tensor at once, or what it keeps would differ by more than the methods do. Linux.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from support.contrastive_photos import open_backbone
from support.contrastive_tables import TITLES
from support.contrastive_training import METHODS
from support.process_memory import peak_bytes, reset_peak, resident_bytes

from mca_perception.backbone import normalise
from mca_perception.classification.losses import method_loss, stage_of
from mca_perception.classification.model import ClassificationHead
from mca_perception.classification.recipe import MethodRecipe
from mca_perception.cli import reports
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.training.hardware import flushed_denormals

NAME = "contrastive-cost"
SEED = 20_000
CLASSES = 81
MEGABYTE = 2**20
TIMEOUT_SECONDS = 1800
MEMORY_STEPS = 2
# Of the C library: a mapping of its own for every larger allocation, nothing kept back, one arena.
RETURN_AT_ONCE = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_MMAP_MAX_": "1000000",
    "MALLOC_ARENA_MAX": "1",
}


def views_of(batch: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Random pixels ``[2 * batch, 3, size, size]`` and the labels of two views each."""
    rng = np.random.default_rng(SEED)
    pixels = rng.integers(0, 256, (2 * batch, 3, size, size), dtype=np.uint8)
    return pixels, np.tile(rng.integers(CLASSES, size=batch), 2)


def case(method_name: str, options: argparse.Namespace, batch: int, steps: int, answers: Any) -> None:
    """Train so many steps; put their processor times and the peak of memory into the queue."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    method = MethodRecipe(**METHODS[method_name])
    if method.two_stages:
        method = method.model_copy(update={"contrastive_batches": steps})
    backbone = open_backbone(ModelBundle.open(options.model)).train()
    head = ClassificationHead(backbone.embed_dim, method, CLASSES)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)
    pixels, labels = (torch.from_numpy(part) for part in views_of(batch, options.size))
    reset_peak()
    before, times = resident_bytes(), []
    with flushed_denormals():
        for step in range(steps):
            started = time.process_time()
            optimiser.zero_grad()
            images = normalise(pixels, torch.device("cpu"), backbone.normalisation)
            rows = head(backbone(images)["encoder_out"])
            loss = method_loss(head, method, rows, labels, stage_of(method, step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            times.append(1000 * (time.process_time() - started))
    # The first step sets up the optimiser's state and torch's kernels.
    answers.put({"processor_ms": times[1:], "bytes": peak_bytes() - before, "loss": loss.item()})


def in_its_own_process(
    name: str, options: argparse.Namespace, batch: int, steps: int, environment: dict[str, str]
) -> dict[str, Any]:
    """:func:`case` in a new process with these environment variables."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=case, args=(name, options, batch, steps, answers))
    os.environ.update(environment)
    try:
        process.start()
    finally:
        for variable in environment:
            del os.environ[variable]
    found: dict[str, Any] = answers.get(timeout=TIMEOUT_SECONDS)
    process.join()
    return found


def measure(options: argparse.Namespace, batch: int) -> dict[str, dict[str, Any]]:
    """Memory of all methods, then their times in turns, so that all see the same state of the machine."""
    names = [name for name in METHODS if name != "frozen"]
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        peak = in_its_own_process(name, options, batch, MEMORY_STEPS, RETURN_AT_ONCE)["bytes"] / MEGABYTE
        print(f"{batch} images, {name}: {peak:.1f} MB", flush=True)
        found[name] = {"peak_megabytes": round(peak, 1)}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.runs):
        for name in names:
            times[name] += in_its_own_process(name, options, batch, options.steps + 1, {})["processor_ms"]
            print(f"{batch} images, {name}: {times[name][-1]:.0f} ms", flush=True)
    for name, values in times.items():
        found[name]["processor_ms"] = round(statistics.median(values), 1)
        found[name]["processor_ms_range"] = [round(min(values), 1), round(max(values), 1)]
    return found


def table(batches: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Everything in Markdown, times and memory also as multiples of cross-entropy's."""
    header = ("batch", "method", "processor ms per step", "of CE", "peak MB", "of CE")
    rows = [
        (
            batch,
            TITLES[name].removesuffix(", probe"),
            f"{entry['processor_ms']:.0f}",
            f"{entry['processor_ms'] / methods['cross_entropy']['processor_ms']:.3f}",
            f"{entry['peak_megabytes']:.1f}",
            f"{entry['peak_megabytes'] / methods['cross_entropy']['peak_megabytes']:.3f}",
        )
        for batch, methods in batches.items()
        for name, entry in methods.items()
    ]
    return reports.table(header, rows)


def main() -> None:
    """Measure and write ``contrastive-cost-<device>.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/nano"), help="bundle that is trained on")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128], help="images, two views each")
    parser.add_argument("--size", type=int, default=96, help="pixels of a view's side")
    parser.add_argument("--steps", type=int, default=3, help="measured steps per process, after one more")
    parser.add_argument("--runs", type=int, default=3, help="processes per method")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    batches = {str(batch): measure(options, batch) for batch in options.batches}
    facts = reports.environment(packages=("torch",))
    target = reports.new_folder(options.out) / f"{NAME}-{reports.device_slug(facts)}.json"
    digest = hashlib.sha256(b"".join(views_of(batch, options.size)[0].tobytes() for batch in options.batches))
    document = {
        "benchmark": NAME,
        "model": reports.model_facts(ModelBundle.open(options.model)),
        "size": options.size,
        "classes": CLASSES,
        "precision": "float32",
        "threads": options.threads,
        "seed": SEED,
        "runs": options.runs,
        "steps": options.steps,
        "input_sha256": digest.hexdigest(),
        "batches": batches,
        **facts,
    }
    reports.write_json(target, document)
    print(table(batches), target, sep="\n")


if __name__ == "__main__":
    main()
