"""Time and memory of the contrastive losses, forward and backward, beside a loop over anchors and a peer library.

The peer is the SupCon loss of pytorch-metric-learning, if that is installed (it is not among this project's
dependencies); otherwise it is left out and named. Random unit rows: neither time nor memory depends on their values.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support import process_memory
from torch import Tensor

from mca_perception.cli import reports
from mca_perception.contrastive import lacln, scl_rhe, supcon_in, supcon_out
from mca_perception.errors import McaError

SEED = 20_000
CLASSES = 100
TEMPERATURE = 0.1
MEGABYTE = 2**20
TIMEOUT_SECONDS = 1800
PEER = "pytorch-metric-learning"
Loss = Callable[[Tensor, Tensor], Tensor]


def anchor_loop(x: Tensor, y: Tensor) -> Tensor:
    """SupCon (outer form) as its equation reads: one anchor after the other."""
    rows = torch.nn.functional.normalize(x, dim=1)
    losses = []
    for i in range(len(rows)):
        similarity = rows @ rows[i] / TEMPERATURE
        others = torch.arange(len(rows), device=rows.device) != i
        positives = others & (y == y[i])
        if positives.any():
            losses.append(similarity[others].logsumexp(0) - similarity[positives].mean())
    return torch.stack(losses).mean()


def peer_loss(x: Tensor, y: Tensor) -> Tensor:
    """SupCon of the peer library, which normalises inside as well."""
    from pytorch_metric_learning.losses import SupConLoss

    return SupConLoss(temperature=TEMPERATURE)(x, y)


LOSSES: dict[str, Loss] = {
    "ours, SupCon outer": lambda x, y: supcon_out(x, y, TEMPERATURE),
    "ours, SupCon inner": lambda x, y: supcon_in(x, y, TEMPERATURE),
    "ours, LACLN": lambda x, y: lacln(x, y, TEMPERATURE),
    "ours, SCL-RHE": lambda x, y: scl_rhe(x, y, TEMPERATURE, 1.0, 1.0, 0.065, 0.00065),
    "loop, SupCon outer": anchor_loop,
    f"{PEER}, SupCon outer": peer_loss,
}


def batch_of(rows: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random rows and labels, the same on every machine."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(rows, width, generator=generator)
    return x.to(device).requires_grad_(), torch.randint(CLASSES, (rows,), generator=generator).to(device)


def installed() -> list[str]:
    """The losses whose library can be imported."""
    try:
        peer_loss(*batch_of(4, 2, torch.device("cpu")))
    except ImportError as error:
        print(f"{PEER} is left out: {error}")
        return [name for name in LOSSES if not name.startswith(PEER)]
    return list(LOSSES)


def case(name: str, device_name: str, rows: int, width: int, steps: int, threads: int, answers: Any) -> None:
    """One loss in a process of its own: step times, value, and the peak above what the process held before."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    loss = LOSSES[name]
    small, labels = batch_of(64, width, device)
    loss(small, labels).backward()
    x, y = batch_of(rows, width, device)
    before = peak_bytes(device)
    times, processor_times = [], []
    for _ in range(steps):
        x.grad = None
        synchronise(device)
        started, processor_started = time.perf_counter(), time.process_time()
        value = loss(x, y)
        value.backward()
        synchronise(device)
        times.append(1000 * (time.perf_counter() - started))
        processor_times.append(1000 * (time.process_time() - processor_started))
    megabytes = (peak_bytes(device) - before) / MEGABYTE
    answers.put(
        {
            "milliseconds": times,
            "processor_milliseconds": processor_times,
            "peak_megabytes": megabytes,
            "value": value.item(),
        }
    )


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Highest memory use of this process so far: allocated on a GPU, resident on a CPU (Linux)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return process_memory.peak_bytes()


def measure(
    device: torch.device, rows: int, width: int, runs: int, steps: int, skipped: list[str]
) -> dict[str, dict[str, Any]]:
    """All losses in turn, ``runs`` times, so that all see the same state of the machine."""
    context = multiprocessing.get_context("spawn")
    names = [name for name in installed() if name not in skipped]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for run in range(runs):
        for name in names:
            if run and name.startswith("loop"):
                continue  # slower by orders of magnitude: one step in all
            answers = context.Queue()
            own_steps = 1 if name.startswith("loop") else steps
            threads = torch.get_num_threads()
            process = context.Process(
                target=case, args=(name, str(device), rows, width, own_steps, threads, answers)
            )
            process.start()
            found[name].append(answers.get(timeout=TIMEOUT_SECONDS))
            process.join()
    return {
        name: {
            "milliseconds": round(statistics.median(t for c in cases for t in c["milliseconds"]), 1),
            "fastest": round(min(t for c in cases for t in c["milliseconds"]), 1),
            # Of all threads together: tells a slow loss from a busy machine.
            "processor_milliseconds": round(
                statistics.median(t for c in cases for t in c["processor_milliseconds"]), 1
            ),
            "peak_megabytes": round(statistics.median(c["peak_megabytes"] for c in cases), 1),
            "value": cases[0]["value"],
        }
        for name, cases in found.items()
    }


def main() -> None:
    """Measure and write ``contrastive-losses-<device>.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="not used: the benchmark needs no model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=4096, help="embeddings in the batch")
    parser.add_argument("--width", type=int, default=128, help="dimensions of an embedding")
    parser.add_argument("--runs", type=int, default=3, help="processes per loss")
    parser.add_argument("--steps", type=int, default=5, help="forward and backward passes per process")
    parser.add_argument("--skip", nargs="+", choices=list(LOSSES)[1:], default=[])
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise McaError(f"--device {options.device}: torch sees no GPU; use --device cpu")
    losses = measure(device, options.rows, options.width, options.runs, options.steps, options.skip)
    reference = losses["ours, SupCon outer"]
    for name, entry in losses.items():
        entry["milliseconds_ratio_to_ours"] = round(entry["milliseconds"] / reference["milliseconds"], 3)
        print(
            f"{name:40} {entry['milliseconds']:10.1f} ms  {entry['milliseconds_ratio_to_ours']:7.2f} x ours  "
            f"{entry['processor_milliseconds']:10.1f} ms of processor  {entry['peak_megabytes']:8.1f} MB   "
            f"value {entry['value']:.6f}"
        )
    facts = reports.environment(packages=("torch", PEER))
    if device.type == "cuda":
        facts["device"]["gpu"] = torch.cuda.get_device_name(device)
    rows = batch_of(options.rows, options.width, torch.device("cpu"))[0].detach()
    target = reports.new_folder(options.out) / f"contrastive-losses-{reports.device_slug(facts)}.json"
    reports.write_json(
        target,
        {
            "benchmark": "contrastive_losses",
            "rows": options.rows,
            "width": options.width,
            "classes": CLASSES,
            "temperature": TEMPERATURE,
            "precision": "float32",
            "threads": torch.get_num_threads(),
            "seed": SEED,
            "runs": options.runs,
            "steps": options.steps,
            "input_sha256": hashlib.sha256(rows.numpy().tobytes()).hexdigest(),
            "losses": losses,
            **facts,
        },
    )
    print(target)


if __name__ == "__main__":
    main()
