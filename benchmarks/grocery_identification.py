"""Identification of real grocery photos: our training against baselines that see no ImageNet either.

Every model is trained on the same photos (the part of `train` that is not held out), with the same crops, batches,
steps, schedule and choice of weights (Recall@1 on the held-out part), and judged by the same code on `--split`:
recall@k of the class against its iconic image and k photos of `train`, by nearest reference. Only backbone and loss
differ, and for one row the start: the shipped nano, which has only ever seen synthesised products.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from support.peers import buildable
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mca_perception.backbone import Backbone, create_backbone, normalise
from mca_perception.backbone.protocol import Normalisation
from mca_perception.cli import reports
from mca_perception.datasets.grocery import is_grocery, read_grocery
from mca_perception.deploy.manifest import IdentificationSpec
from mca_perception.errors import McaError
from mca_perception.identification.task import IdentificationTask
from mca_perception.pipeline.embedding import MAX_CROPS_AT_ONCE, Embedder
from mca_perception.pipeline.identification_evaluation import evaluate_identification
from mca_perception.resources import resource_path
from mca_perception.training.checkpoints import load_shared_weights
from mca_perception.training.hardware import describe_device, flushed_denormals, select_device
from mca_perception.training.loop import train
from mca_perception.training.model import PerceptionModel
from mca_perception.training.recipe import Recipe, load_recipe

NAME = "grocery_identification"
REFERENCES = (0, 1, 5)
RECALIBRATION_BATCHES = 8
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ours": ("nano, InfoNCE on pairs (ours)", "nano", {}),
    "ours_from_nano": ("the same, from models/nano", "nano", {}),
    "supcon": ("nano, SupCon", "nano", {"loss": "supcon"}),
    "cross_entropy": ("nano, classifier features", "nano", {"loss": "clce", "contrast_weight": 0.0}),
    "resnet18": ("ResNet-18, InfoNCE on pairs", "resnet18", {}),
    "resnet18_cross_entropy": (
        "ResNet-18, classifier features",
        "resnet18",
        {"loss": "clce", "contrast_weight": 0.0},
    ),
}


class ResNet18(Backbone):
    """torchvision's ResNet-18 with random weights; a token per cell of its last map, their mean in place of CLS."""

    embed_dim, patch_size = 512, 32
    modalities = ("vision",)
    normalisation = Normalisation((0.5,) * 3, (0.5,) * 3)

    def __init__(self, img_size: int) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.img_size = img_size
        self.body = nn.Sequential(*list(resnet18(weights=None).children())[:-2])

    def forward(self, images: Tensor, *_: Any) -> dict[str, Tensor]:
        """``[N, 3, H, W]`` to ``[N, 1 + T, 512]``."""
        cells = self.body(images).flatten(2).transpose(1, 2)
        return {"encoder_out": torch.cat([cells.mean(1, keepdim=True), cells], dim=1)}


class BenchmarkTask(IdentificationTask):
    """Batch normalisation measures its statistics anew for the averaged weights before they are judged."""

    def validate(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        """As always, with fresh statistics."""
        self.recalibrate(backbone, device)
        return super().validate(backbone, device)

    def recalibrate(self, backbone: Backbone, device: torch.device) -> None:
        """Replace running statistics by those of some training batches; nothing to do without any."""
        layers = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        if not layers:
            return
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # plain mean over the batches
            layer.train()
        loader = DataLoader(self.dataset, self.recipe.batch_size, shuffle=True)
        with torch.no_grad():
            for _, batch in zip(range(RECALIBRATION_BATCHES), loader, strict=False):
                crops = torch.cat([batch.query[:, 0], batch.reference[:, 0]])
                backbone(normalise(crops, device, backbone.normalisation))
        for layer in layers:
            layer.momentum = 0.1
            layer.eval()


class TorchEmbedder(Embedder):
    """A trained model as the evaluation asks for it."""

    def __init__(self, model: PerceptionModel, recipe: Recipe, device: torch.device) -> None:
        section = recipe.identification
        assert section is not None
        self._settings = IdentificationSpec(
            crop_size=section.crop_size,
            embedding_dim=section.embedding_dim,
            margin=section.margin,
            background=127,
        )
        self.model, self.device = model.eval(), device

    @property
    def identification_settings(self) -> IdentificationSpec:
        """How crops are made."""
        return self._settings

    @torch.inference_mode()
    def embed_crops(self, crops: list[NDArray[np.uint8]], *, references: bool = False) -> NDArray[np.float32]:
        """uint8 ``[S, S, 3]`` each to ``[N, E]``."""
        parts = []
        for start in range(0, len(crops), MAX_CROPS_AT_ONCE):
            batch = np.stack(crops[start : start + MAX_CROPS_AT_ONCE]).transpose(0, 3, 1, 2).copy()
            images = normalise(torch.from_numpy(batch), self.device, self.model.backbone.normalisation)
            features = self.model.backbone(images)["encoder_out"]
            parts.append(self.model.heads["identification"](features, references=references).cpu().numpy())
        return np.concatenate(parts)


def recipe_of(name: str, seed: int, options: argparse.Namespace) -> Recipe:
    """The published recipe with the model's backbone and loss, and the benchmark's budget."""
    _, backbone, loss = MODELS[name]
    changes = {
        "name": NAME,
        "seed": seed,
        "backbone.name": "beit3_nano_patch16" if backbone == "nano" else backbone,
        "backbone.img_size": options.size,
        "identification.crop_size": options.size,
        "identification.data": options.data,
        "identification.batch_size": options.batch,
        "identification.workers": options.workers,
        "budget.max_steps": options.steps,
        "budget.validate_steps": max(1, options.steps // 12),
        "optimiser.warmup_steps": max(1, options.steps // 30),
        "precision": "fp32",
        "device": options.device,
        **{f"identification.{key}": value for key, value in loss.items()},
    }
    path = resource_path("recipes") / "grocery_identification.yaml"
    return load_recipe(path, [f"{key}={value}" for key, value in changes.items()])


def run(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model from one seed and judge it."""
    recipe = recipe_of(name, seed, options)
    section = recipe.identification
    assert section is not None
    torch.manual_seed(seed)
    size = recipe.backbone.img_size
    backbone = (
        create_backbone(recipe.backbone.name, img_size=size) if MODELS[name][1] == "nano" else ResNet18(size)
    )
    task = BenchmarkTask(section, backbone.embed_dim, seed)
    model = PerceptionModel(backbone, {task.name: task.head})
    if name == "ours_from_nano":
        load_shared_weights(resource_path("models") / "nano" / "weights.safetensors", model)
    device = select_device(options.device)
    folder = reports.new_folder(options.work / f"{name}-{seed}")
    started = time.monotonic()
    with flushed_denormals():
        state = train(recipe, model, [task], folder, resume=options.resume)
    model.eval()
    task.recalibrate(backbone, device)
    embedder = TorchEmbedder(model, recipe, device)
    figures: dict[str, Any] = {
        "minutes": round((time.monotonic() - started) / 60, 2),
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "held_out": state.metrics,
    }
    for count in REFERENCES:
        index = read_grocery(options.data, options.split, natural_references=count, seed=seed)
        metrics = evaluate_identification(embedder, index, seed=seed).metrics
        figures[f"references_{count}"] = {
            key: metrics[key] for key in ("recall@1", "recall@2", "recall@3", "map", "queries", "skipped")
        }
    return figures


def summarise(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation of Recall@1 over the seeds of every model."""
    summary = {}
    for name, (title, _, _) in MODELS.items():
        done = [figures for key, figures in runs.items() if key.rpartition("-")[0] == name]
        if not done:
            continue
        entry: dict[str, Any] = {"title": title, "seeds": len(done), "parameters": done[0]["parameters"]}
        for count in REFERENCES:
            values = [figures[f"references_{count}"]["recall@1"] for figures in done]
            entry[f"references_{count}"] = {
                "mean": statistics.mean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else None,
            }
        summary[name] = entry
    return summary


def markdown(summary: dict[str, dict[str, Any]]) -> str:
    """Recall@1 as a table."""
    header = ("model", "parameters", "seeds", *(f"k = {count}" for count in REFERENCES))
    rows = []
    for entry in summary.values():
        cells = []
        for count in REFERENCES:
            figures = entry[f"references_{count}"]
            spread = figures["deviation"]
            cells.append(f"{figures['mean']:.3f}" + ("" if spread is None else f" ± {spread:.3f}"))
        rows.append((entry["title"], f"{entry['parameters'] / 1e6:.1f} M", entry["seeds"], *cells))
    return reports.table(header, rows)


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="not used: the benchmark trains its own models")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--data", type=Path, help="folder of the Grocery Store data set")
    parser.add_argument("--split", default="val", help="list of photos to report on")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated, of these six")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=96, help="side of the crops in pixels")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs") / NAME, help="folder of the runs")
    parser.add_argument("--resume", action="store_true", help="keep what is finished, go on with the rest")
    options = parser.parse_args()
    options.names = [name.strip() for name in options.models.split(",")]
    unknown = [name for name in options.names if name not in MODELS]
    if unknown:
        parser.error(f"--models {unknown[0]}: must be of {', '.join(MODELS)}")
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What two results must share to be comparable; ``input_sha256`` is of the lists."""
    if not is_grocery(options.data):
        raise McaError(
            f"--data {options.data} has no classes.csv; give the folder of the Grocery Store data set"
        )
    digest = hashlib.sha256()
    for name in ("classes.csv", "train.txt", f"{options.split}.txt"):
        digest.update((options.data / name).read_bytes())
    shared = {key: getattr(options, key) for key in ("split", "steps", "batch", "size")}
    return {**shared, "input_sha256": digest.hexdigest()}


def main() -> None:
    """Train and judge all models from all seeds; write ``grocery_identification-<device>.json`` after each."""
    options = parse()
    if options.data is None:
        print(f"{NAME} trains for hours and is left out: give --data to run it (see benchmarks/README.md)")
        return
    torch.set_num_threads(options.threads)
    facts = reports.environment(packages=("torch", "torchvision"))
    device = select_device(options.device)
    if device.type == "cuda":
        facts["device"]["gpu"] = torch.cuda.get_device_name(device)
    path = reports.new_folder(options.out) / f"{NAME}-{reports.device_slug(facts)}.json"
    settings, runs = settings_of(options), {}
    if options.resume and path.is_file():
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["settings"] != settings:
            raise McaError(f"{path} is of a run with other settings; leave out --resume")
        runs = document["runs"]
    for seed in (int(number) for number in options.seeds.split(",")):
        for name in buildable(
            options.names, "torchvision.models", lambda name: MODELS[name][1] == "resnet18"
        ):
            if (key := f"{name}-{seed}") in runs:
                print(f"{key} is finished")
                continue
            runs[key] = run(name, seed, options)
            document = {
                "benchmark": NAME,
                "settings": settings,
                "training_device": describe_device(device),
                "summary": summarise(runs),
                "runs": runs,
                **facts,
            }
            reports.write_json(path, document)
    print(markdown(summarise(runs)))
    print(path)


if __name__ == "__main__":
    main()
