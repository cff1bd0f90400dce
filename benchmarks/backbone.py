"""Forward latency and training cost of the backbone beside torchscale's and timm's BEiT-3, in one run.

Random weights: neither time nor memory depends on their values. Peers that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mca_perception.backbone import BackboneError
from mca_perception.backbone.adapters import LoraConfig, MultiWayConfig, inject
from mca_perception.cli import reports
from mca_perception.cli.bench_peers import (
    NAME,
    build_ours,
    build_timm,
    build_torchscale,
    features,
    installed,
)

SEED = 20_000
WINDOW = 14
HIGH_RESOLUTION = 1024
CLASSES = 100
MEGABYTE = 2**20
Forward = Callable[[Tensor], Tensor]


def modes(device: torch.device) -> dict[str, Callable[[nn.Module], Forward]]:
    """How a model can be run: eager everywhere; compiled and as a CUDA graph on a GPU."""

    def eager(model: nn.Module) -> Forward:
        return lambda images: features(model, images)

    def compiled(model: nn.Module) -> Forward:
        return torch.compile(lambda images: features(model, images), dynamic=False)

    def cuda_graph(model: nn.Module) -> Forward:
        return torch.compile(lambda images: features(model, images), dynamic=False, mode="reduce-overhead")

    return {"eager": eager} | (
        {"compiled": compiled, "CUDA graph": cuda_graph} if device.type == "cuda" else {}
    )


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call."""
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return 1000 * (time.perf_counter() - started)


def forward_table(device: torch.device, batches: list[int], runs: int) -> Iterator[dict[str, Any]]:
    """Latency at 224 px, the candidates taking turns so that all see the same state of the machine."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models = {name: build(224).eval().to(device, dtype) for name, build in installed().items()}
    for mode, prepare in modes(device).items():
        calls = {name: prepare(model) for name, model in models.items()}
        for batch in batches:
            images = seeded_images(batch, 224).to(device, dtype)
            yield {"px": 224, "batch": batch, "mode": mode} | interleave(calls, images, device, runs)


def high_resolution_table(device: torch.device, runs: int) -> dict[str, Any]:
    """Latency at 1024 px, batch 1: windows (ViTDet) against global attention in every block."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models: dict[str, nn.Module] = {"ours, windows": build_ours(224, window_size=WINDOW)}
    models |= {f"{name}, global": build(HIGH_RESOLUTION) for name, build in installed().items()}
    calls = {name: modes(device)["eager"](model.eval().to(device, dtype)) for name, model in models.items()}
    images = seeded_images(1, HIGH_RESOLUTION).to(device, dtype)
    return {"px": HIGH_RESOLUTION, "batch": 1, "mode": "eager"} | interleave(calls, images, device, runs)


def interleave(
    calls: dict[str, Forward], images: Tensor, device: torch.device, runs: int
) -> dict[str, dict[str, Any]]:
    """Median, spread and throughput of every candidate after one warm-up."""
    timings: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for call in calls.values():
            for _ in range(3 if device.type == "cuda" else 1):
                call(images)
        for _ in range(runs):
            for name, call in calls.items():
                timings[name].append(milliseconds(lambda call=call: call(images), device))
    return {
        "milliseconds": {name: round(statistics.median(values), 2) for name, values in timings.items()},
        "fastest": {name: round(min(values), 2) for name, values in timings.items()},
        "images_per_second": {
            name: round(1000 * images.shape[0] / statistics.median(values), 2)
            for name, values in timings.items()
        },
    }


def seeded_images(batch: int, px: int) -> Tensor:
    """Random images, the same on every machine."""
    return torch.randn(batch, 3, px, px, generator=torch.Generator().manual_seed(SEED))


TRAINING: dict[str, Callable[[], nn.Module]] = {
    "ours, full": lambda: build_ours(224),
    "ours, multiway adapter": lambda: inject(build_ours(224), MultiWayConfig()),
    "ours, LoRA": lambda: inject(build_ours(224), LoraConfig()),
    "timm, full": lambda: build_timm(224),
    "torchscale, full": lambda: build_torchscale(224),
}


def training_case(name: str, device_name: str, batch: int, steps: int, threads: int, answers: Any) -> None:
    """One candidate in a process of its own: step times, and the peak above what the process held before."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    torch.manual_seed(SEED)
    images, labels = seeded_images(batch, 224).to(device), torch.arange(batch, device=device) % CLASSES
    before = peak_bytes(device)
    backbone = TRAINING[name]().train().to(device)
    head = nn.Linear(768, CLASSES).to(device)
    trained = [p for p in [*backbone.parameters(), *head.parameters()] if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = head(features(backbone, images)[:, 0])
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimiser.step()

    step()
    times = [milliseconds(step, device) for _ in range(steps)]
    answers.put(
        {
            "milliseconds": times,
            "peak_megabytes": (peak_bytes(device) - before) / MEGABYTE,
            "trained_parameters": sum(p.numel() for p in trained if p.grad is not None),
        }
    )


def peak_bytes(device: torch.device) -> int:
    """Highest memory use of this process so far: allocated on a GPU, resident on a CPU (Linux)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Not getrusage: a child starts with its parent's peak there.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def training_table(device: torch.device, batch: int, runs: int, steps: int) -> dict[str, Any]:
    """Step time (median over all steps of all runs) and peak memory; runs of the candidates alternate."""
    context = multiprocessing.get_context("spawn")
    names = [name for name in TRAINING if name.partition(",")[0] in installed()]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            answers = context.Queue()
            threads = torch.get_num_threads()
            process = context.Process(
                target=training_case, args=(name, str(device), batch, steps, threads, answers)
            )
            process.start()
            found[name].append(answers.get(timeout=1800))
            process.join()
    result = {
        name: {
            "milliseconds": round(statistics.median(t for c in cases for t in c["milliseconds"]), 1),
            "fastest": round(min(t for c in cases for t in c["milliseconds"]), 1),
            "peak_megabytes": round(statistics.median(c["peak_megabytes"] for c in cases)),
            "trained_parameters": cases[0]["trained_parameters"],
        }
        for name, cases in found.items()
    }
    full = result["ours, full"]
    for entry in result.values():
        for key in ("milliseconds", "peak_megabytes"):
            entry[f"{key}_ratio_to_full"] = round(entry[key] / full[key], 3)
    return {"px": 224, "batch": batch, "classes": CLASSES, "candidates": result}


def print_forward(row: dict[str, Any]) -> None:
    """One line per candidate, with its time relative to ours."""
    ours = next(iter(row["milliseconds"].values()))
    for name, value in row["milliseconds"].items():
        print(
            f"{row['px']:5} px  batch {row['batch']:3}  {row['mode']:10}  {name:20} {value:9.1f} ms "
            f"{row['images_per_second'][name]:8.2f} img/s   {value / ours:5.2f} x ours"
        )


def main() -> None:
    """Measure and write ``backbone-<device>.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="not used: the benchmark builds its own models")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=7, help="turns of every candidate")
    parser.add_argument("--training-batch", type=int, help="default: 8 on a CPU, 64 on a GPU")
    parser.add_argument("--skip", nargs="+", choices=["forward", "high-resolution", "training"], default=[])
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackboneError(f"--device {options.device}: torch sees no GPU; use --device cpu")
    torch.manual_seed(SEED)
    gpu = device.type == "cuda"
    forward: list[dict[str, Any]] = []
    if "forward" not in options.skip:
        for row in forward_table(device, [1, 64] if gpu else [1, 8], options.runs):
            forward.append(row)
            print_forward(row)
    if "high-resolution" not in options.skip:
        forward.append(high_resolution_table(device, max(1, options.runs // 2)))
        print_forward(forward[-1])
    training = None
    if "training" not in options.skip:
        batch = options.training_batch or (64 if gpu else 8)
        training = training_table(device, batch, max(1, options.runs // 2), steps=20 if gpu else 3)
        for name, entry in training["candidates"].items():
            print(
                f"training  batch {batch:3}  {name:24} {entry['milliseconds']:9.1f} ms/step "
                f"({entry['milliseconds_ratio_to_full']:.2f} x full)  {entry['peak_megabytes']:7} MB "
                f"({entry['peak_megabytes_ratio_to_full']:.2f} x)  {entry['trained_parameters']:,} trained"
            )
    facts = reports.environment(packages=("torch", "timm", "torchscale", "peft"))
    if gpu:
        facts["device"]["gpu"] = torch.cuda.get_device_name(device)
    target = reports.new_folder(options.out) / f"backbone-{reports.device_slug(facts)}.json"
    reports.write_json(
        target,
        {
            "benchmark": "backbone",
            "model": NAME,
            "weights": "random",
            "precision": "bfloat16" if gpu else "float32",
            "threads": torch.get_num_threads(),
            "window_size": WINDOW,
            "seed": SEED,
            "runs": options.runs,
            "input_sha256": hashlib.sha256(
                np.ascontiguousarray(seeded_images(8, 224).numpy()).tobytes()
            ).hexdigest(),
            "forward": forward,
            "training": training,
            **facts,
        },
    )
    print(target)


if __name__ == "__main__":
    main()
