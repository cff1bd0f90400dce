"""Learning from scratch, side by side: nano with either head against torchvision's Mask R-CNN on two backbones.

Every model sees the same scenes in the same order, at the same size, in batches of the same size, in float32, and is
judged by the same code on the same held-out validation images: instance masks at the pixels of the network's input.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from support.peers import buildable
from support.segmentation_models import MAX_OBJECTS, Candidate, Detect, Images, MaskRcnn, Nano
from torch import nn
from torch.utils.data import DataLoader

from mca_perception.cli import reports
from mca_perception.errors import McaError
from mca_perception.segmentation.cascade.data import collate
from mca_perception.segmentation.recipe import SegmentationRecipe
from mca_perception.segmentation.validation import Found, mask_average_precision
from mca_perception.training.hardware import describe_device, flushed_denormals, select_device
from mca_perception.training.recipe import OptimiserSection
from mca_perception.training.schedule import learning_rate, parameter_groups, set_learning_rate

NAME = "segmentation_learning"
QUARTERS = (0.25, 0.5, 0.75, 1.0)
REPORTS_PER_RUN = 20
LATENCY_IMAGES = 8
MODELS = {
    "edge": "nano, edge head",
    "cascade": "nano, cascade head",
    "maskrcnn_resnet50": "torchvision Mask R-CNN, ResNet-50 FPN",
    "maskrcnn_mobilenet": "torchvision Mask R-CNN, MobileNetV3-Large FPN",
}


def build(name: str, options: argparse.Namespace) -> Candidate:
    """A model from seeded random weights with its data opened."""
    torch.manual_seed(options.seed)
    ours = name in ("edge", "cascade")
    recipe = SegmentationRecipe(
        data=options.data,
        subset=options.subset,
        head=name if ours else "cascade",
        input_size=tuple(options.size),
        batch_size=options.batch,
        workers=options.workers,
        max_objects=MAX_OBJECTS,
        validation_images=options.validation_images,
    )
    steps = options.images // options.batch
    optimiser = OptimiserSection(
        lr=options.lr if ours else options.torchvision_lr,
        betas=(0.9, 0.98) if ours else (0.9, 0.999),
        warmup_steps=max(1, steps // 10),
        flat_fraction=0.0,
    )
    if ours:
        return Nano(recipe, optimiser, options.seed)
    backbone = "resnet50" if name == "maskrcnn_resnet50" else "mobilenet_v3_large"
    return MaskRcnn(backbone, recipe, optimiser, options.seed, options.torchvision_rois)


def endless(candidate: Candidate, seed: int) -> Iterator[Any]:
    """Batches, epoch after epoch, each epoch in its own order."""
    epoch = 0
    while True:
        found = False
        for batch in candidate.batches(seed + epoch):
            found = True
            yield batch
        if not found:
            raise McaError("the training split is smaller than one batch; lower --batch or add scenes")
        epoch += 1


def judge(candidate: Candidate, batch: int) -> dict[str, float]:
    """Mask average precision on the validation images, at the pixels of the network's input."""
    candidate.module.eval()

    def evaluated() -> Iterator[tuple[Found, tuple[NDArray[np.bool_], NDArray[np.int64]]]]:
        for images, truths in DataLoader(candidate.validation, batch, collate_fn=collate):
            for found, truth in zip(candidate.detect(images), truths, strict=True):
                yield found, (truth.masks.numpy(), truth.labels.numpy())

    with torch.inference_mode():
        figures = mask_average_precision(evaluated())
    candidate.module.train()
    return {name: round(figures[name], 4) for name in ("mask_map50", "mask_map75", "mask_map")}


def train(
    name: str, candidate: Candidate, options: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Train for the wanted number of images; validate after each quarter of them."""
    steps = options.images // options.batch
    module, settings = candidate.module.to(device).train(), candidate.optimiser
    optimiser = torch.optim.AdamW(
        parameter_groups(module, settings.weight_decay), lr=settings.lr, betas=settings.betas
    )
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    torch.manual_seed(options.seed)
    stops = {math.ceil(steps * quarter): quarter for quarter in QUARTERS}
    seconds = processor_seconds = 0.0
    curve, source = [], endless(candidate, options.seed)
    for step in range(1, steps + 1):
        started, processor = time.perf_counter(), time.process_time()
        set_learning_rate(optimiser, learning_rate(step - 1, (step - 1) / steps, settings))
        optimiser.zero_grad(set_to_none=True)
        loss = candidate.loss(next(source), device)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        if not torch.isfinite(norm):
            raise McaError(f"{name}: the gradient is not finite at step {step}; lower its learning rate")
        optimiser.step()
        value = loss.item()
        seconds += time.perf_counter() - started
        processor_seconds += time.process_time() - processor
        if step % max(1, steps // REPORTS_PER_RUN) == 0:
            left = seconds / step * (steps - step) / 60
            print(
                f"{name}: step {step}/{steps}, loss {value:.3f}, {seconds / step:.2f} s/step, {left:.0f} min left",
                flush=True,
            )
        if step in stops:
            curve.append({"images": step * options.batch, **judge(candidate, options.batch)})
            print(f"{name}: {stops[step]:.0%} of the images, {curve[-1]}", flush=True)
    return {
        "title": MODELS[name],
        "note": candidate.note,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "optimiser": settings.model_dump(mode="json"),
        "images_seen": steps * options.batch,
        "steps": steps,
        "training_minutes": round(seconds / 60, 2),
        "seconds_per_step": round(seconds / steps, 3),
        "processor_seconds_per_step": round(processor_seconds / steps, 3),
        "curve": curve,
        **{key: curve[-1][key] for key in ("mask_map50", "mask_map75", "mask_map")},
    }


def restore(candidate: Candidate, path: Path) -> None:
    """Load trained weights."""
    try:
        candidate.module.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise McaError(f"{path} is of another version of the model; delete it to train it again") from error


def exported(candidate: Candidate, folder: Path, threads: int) -> tuple[Detect, str | None]:
    """The model in ONNX Runtime, or in PyTorch with the reason why it could not be exported."""
    try:
        return candidate.export(folder, threads), None
    except Exception as error:  # whatever an exporter raises belongs in the table, not in a crash
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        return lambda images: candidate.detect(torch.from_numpy(images)), reason


def measure_latency(
    names: list[str], options: argparse.Namespace, work: Path
) -> tuple[dict[str, dict[str, Any]], str]:
    """Median time from one uint8 image to its instances for every trained model, taking turns; hash of the images."""
    models: dict[str, Detect] = {}
    reasons: dict[str, str | None] = {}
    images: list[Images] = []
    timings: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name in names:
            candidate = build(name, options)
            restore(candidate, work / f"{name}.safetensors")
            candidate.module.eval()
            target = Path(folder) / name
            target.mkdir()
            models[name], reasons[name] = exported(candidate, target, options.threads)
            count = min(LATENCY_IMAGES, len(candidate.validation))
            images = images or [candidate.validation[i].image.numpy()[None] for i in range(count)]
            found[name] = sum(len(scores) for image in images for scores, _, _ in models[name](image))
            print(f"{name}: {reasons[name] or 'exported'}", flush=True)
        for _ in range(options.latency_runs):
            for image in images:
                for name in names:
                    started = time.perf_counter()
                    models[name](image)
                    timings[name].append(1000 * (time.perf_counter() - started))
    result = {
        name: {
            "runtime": "ONNX Runtime" if reasons[name] is None else "PyTorch eager",
            "export_error": reasons[name],
            "milliseconds": round(statistics.median(timings[name]), 2),
            "fastest": round(min(timings[name]), 2),
            "detections_per_image": round(found[name] / len(images), 1),
        }
        for name in names
    }
    return result, hashlib.sha256(np.concatenate(images).tobytes()).hexdigest()


def markdown(models: dict[str, dict[str, Any]], latencies: dict[str, dict[str, Any]]) -> str:
    """The result as a table, with what each row needs to be read right below it."""
    header = (
        "model",
        "parameters",
        "AP50",
        "AP75",
        "AP",
        "images seen",
        "training min",
        "latency ms",
        "runtime",
    )
    rows, notes = [], []
    for name, entry in models.items():
        latency = latencies.get(name, {})
        rows.append(
            (
                entry["title"],
                f"{entry['parameters'] / 1e6:.1f} M",
                entry["mask_map50"],
                entry["mask_map75"],
                entry["mask_map"],
                entry["images_seen"],
                f"{entry['training_minutes']:.1f}",
                f"{latency['milliseconds']:.1f}" if latency else None,
                latency.get("runtime"),
            )
        )
        error = latency.get("export_error")
        notes.append(f"- {entry['title']}: {entry['note']}" + (f"; no ONNX: {error}" if error else ""))
    return reports.table(header, rows) + "\n" + "\n".join(notes) + "\n"


def plot(models: dict[str, dict[str, Any]], path: Path) -> None:
    """AP50 over the images seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for entry in models.values():
        points = [(point["images"], point["mask_map50"]) for point in entry["curve"]]
        axes.plot(*zip(*points, strict=True), marker="o", label=entry["title"])
    axes.set(xlabel="images seen", ylabel="mask AP50, validation images", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What two results must share to be comparable; ``input_sha256`` is of the annotation files."""
    folder = options.data / options.subset
    digest = hashlib.sha256()
    for split in ("train", "val"):
        path = folder / f"{split}.json"
        if not path.is_file():
            raise McaError(f"--data {options.data}: {path} is missing; make it with `mca synth totes`")
        digest.update(path.read_bytes())
    shared = (
        "subset",
        "images",
        "batch",
        "size",
        "validation_images",
        "seed",
        "lr",
        "torchvision_lr",
        "torchvision_rois",
    )
    return {**{key: getattr(options, key) for key in shared}, "input_sha256": digest.hexdigest()}


def finished(path: Path, settings: dict[str, Any], work: Path) -> dict[str, dict[str, Any]]:
    """Results of an earlier run with the same settings whose weights are still there."""
    if not path.is_file():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key, value in settings.items() if document["settings"].get(key) != value]
    if differing:
        raise McaError(f"{path} is of a run with another {', '.join(differing)}; leave out --resume")
    return {
        name: entry for name, entry in document["models"].items() if (work / f"{name}.safetensors").is_file()
    }


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="not used: the benchmark trains its own models")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file and the curves")
    parser.add_argument("--data", type=Path, help="totes in ARMBench's layout with splits train and val")
    parser.add_argument("--subset", default="mix-object-tote")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated, of these four")
    parser.add_argument("--images", type=int, default=3200, help="images that each model sees")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 320], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--validation-images", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of ours")
    parser.add_argument(
        "--torchvision-lr", type=float, default=5e-4, help="peak learning rate of torchvision's"
    )
    parser.add_argument("--torchvision-rois", type=int, default=64, help="regions per image in its training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="of training on a CPU and of the latency")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare scenes")
    parser.add_argument("--latency-runs", type=int, default=7)
    parser.add_argument(
        "--work", type=Path, default=Path("runs") / NAME, help="folder for the trained weights"
    )
    parser.add_argument("--resume", action="store_true", help="keep the models that are finished")
    options = parser.parse_args()
    options.names = [name.strip() for name in options.models.split(",")]
    unknown = [name for name in options.names if name not in MODELS]
    if unknown:
        parser.error(f"--models {unknown[0]}: must be of {', '.join(MODELS)}")
    if not 1 <= options.batch <= options.images:
        parser.error(
            f"--images {options.images}: must be at least --batch {options.batch}, itself at least 1"
        )
    return options


def main() -> None:
    """Train, judge and time the models; write ``segmentation_learning-<device>.json`` and ``.png``."""
    options = parse()
    if options.data is None:
        print(f"{NAME} trains for hours and is left out: give --data to run it (see benchmarks/README.md)")
        return
    torch.set_num_threads(options.threads)
    device = select_device(options.device)
    facts = reports.environment(packages=("torch", "torchvision"))
    if device.type == "cuda":
        facts["device"]["gpu"] = torch.cuda.get_device_name(device)
    out, work = reports.new_folder(options.out), reports.new_folder(options.work)
    path = out / f"{NAME}-{reports.device_slug(facts)}.json"
    settings = settings_of(options)
    models = finished(path, settings, work) if options.resume else {}
    document: dict[str, Any] = {
        "benchmark": NAME,
        "settings": settings,
        "precision": "float32",
        "judge": "mca_perception.segmentation.validation.mask_average_precision at the network's input pixels",
        "training_device": describe_device(device),
        "threads": options.threads,
        "models": models,
        "latency": {},
        **facts,
    }
    names = buildable(options.names, "torchvision.models.detection", lambda name: name.startswith("maskrcnn"))
    for name in names:
        if name in models:
            print(f"{name} is finished")
            continue
        candidate = build(name, options)
        with flushed_denormals():
            models[name] = train(name, candidate, options, device)
        save_file(
            {key: value.cpu().contiguous() for key, value in candidate.module.state_dict().items()},
            work / f"{name}.safetensors",
        )
        reports.write_json(path, document)
    trained = [name for name in names if name in models]
    document["latency"], document["latency_input_sha256"] = measure_latency(trained, options, work)
    reports.write_json(path, document)
    plot(models, path.with_suffix(".png"))
    print(markdown(models, document["latency"]))
    print(path)


if __name__ == "__main__":
    main()
