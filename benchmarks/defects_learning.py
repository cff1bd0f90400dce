"""Learning to see defects, side by side: nano against ResNet-18 and ResNet-50 from random weights.

All train on the same picks with the same crops, changes, losses and head (ours, on the cells of a ResNet's last map),
for the same processor time: nano for the steps of its recipe, the others for as many as fit. Weights are chosen on
validation picks, thresholds on calibration picks, and all are judged on the test picks by the product's own code.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.defect_models import ResNet, TrainedInspector
from support.kept_results import kept
from support.peers import buildable

from mca_perception.backbone import Backbone
from mca_perception.cli import plots, reports
from mca_perception.cli.defects_report import curve_of
from mca_perception.datasets.armbench_defects import read_defect_images
from mca_perception.defects.data import PickSample
from mca_perception.defects.figures import RATES
from mca_perception.defects.task import DefectTask
from mca_perception.errors import McaError
from mca_perception.pipeline.defect_evaluation import DefectRun, calibrate_thresholds, evaluate_defects
from mca_perception.training.checkpoints import WEIGHTS, load_shared_weights
from mca_perception.training.hardware import describe_device, flushed_denormals, select_device
from mca_perception.training.loop import train
from mca_perception.training.model import PerceptionModel, build
from mca_perception.training.recipe import BackboneSection, Recipe, load_recipe

NAME = "defects_learning"
RECIPE = Path(__file__).parents[1] / "recipes" / "nano_defects.yaml"
MODELS = {
    "nano": "nano, from models/nano",
    "resnet18": "ResNet-18, from random weights",
    "resnet50": "ResNet-50, from random weights",
}
TIMED_STEPS = 12
FPR, CONFIDENCE = 0.01, 0.95


def recipe_of(name: str, options: argparse.Namespace, steps: int | None = None) -> Recipe:
    """Nano's recipe, or the same with a ResNet in place of its backbone; it has no need of a branch for details.

    A moving average of weights does not fit the statistics of batch normalisation, which follow the last ones, so the
    ResNets go without; they also train at one learning rate for all layers.
    """
    overrides = [f"defects.data={options.data}", f"seed={options.seed}", f"device={options.device}"]
    recipe = load_recipe(RECIPE, overrides + options.set)
    if name != "nano":
        optimiser = recipe.optimiser.model_copy(
            update={"lr": options.resnet_lr, "layer_decay": 1.0, "ema_decay": 0.0}
        )
        assert recipe.defects is not None
        defects = recipe.defects.model_copy(update={"detail_dim": 0})
        changes = {"name": name, "init_from": None, "optimiser": optimiser, "defects": defects}
        recipe = recipe.model_copy(update={**changes, "backbone": BackboneSection(name=name)})
    if steps is not None:
        limits = {"max_steps": steps, "validate_steps": max(1, steps // 6)}
        recipe = recipe.model_copy(update={"budget": recipe.budget.model_copy(update=limits)})
    return recipe


def model_of(name: str, recipe: Recipe) -> tuple[PerceptionModel, DefectTask]:
    """Backbone and head with the weights that training starts from."""
    torch.manual_seed(recipe.seed)
    if name == "nano":
        model, (task,) = build(recipe)
        assert isinstance(task, DefectTask)
        return model, task
    assert recipe.defects is not None
    backbone: Backbone = ResNet(name, recipe.defects.crop_size)
    task = DefectTask(recipe.defects, backbone.embed_dim, recipe.seed)
    return PerceptionModel(backbone, {task.name: task.head}), task


def processor_seconds_per_step(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Median processor time of forward and backward of a batch, models in turns; without reading the images."""
    models: dict[str, tuple[PerceptionModel, DefectTask]] = {}
    batches: list[PickSample] = []
    for name in names:
        model, task = model_of(name, recipe_of(name, options))
        models[name] = (model.train(), task)
        batches = batches or list(islice(task.batches(options.seed), TIMED_STEPS))
    times: dict[str, list[float]] = {name: [] for name in names}
    for batch in batches:
        for name, (model, task) in models.items():
            started = time.process_time()
            losses = task.losses(model.backbone, batch, torch.device("cpu"))
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            times[name].append(time.process_time() - started)
            model.zero_grad()
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def run(name: str, steps: int, options: argparse.Namespace) -> tuple[PerceptionModel, DefectTask, Recipe]:
    """Train, or take what is finished; go on with what is not."""
    recipe = recipe_of(name, options, steps)
    folder = options.work / f"{name}-{options.seed}"
    model, task = model_of(name, recipe)
    if (folder / WEIGHTS).is_file():
        if untouched := load_shared_weights(folder / WEIGHTS, model):
            raise McaError(f"{folder / WEIGHTS} lacks {untouched[0]}; delete the folder to train again")
        print(f"{name}: {folder} is finished")
        return model, task, recipe
    train(recipe, model, [task], folder, resume=True)
    return model, task, recipe


def judge(model: PerceptionModel, task: DefectTask, recipe: Recipe) -> DefectRun:
    """Calibrate on the held-out sessions and evaluate on the test picks."""
    inspector = TrainedInspector(model.backbone.cpu(), task, recipe)
    assert recipe.defects is not None
    index = read_defect_images(recipe.defects.data)
    inspector.take(calibrate_thresholds(inspector, index, FPR, CONFIDENCE))
    return evaluate_defects(inspector, index, seed=recipe.seed)


def entry_of(name: str, model: PerceptionModel, found: DefectRun) -> dict[str, Any]:
    """What is kept of a model."""
    official = found.metrics["official"]
    units = {
        "image": official["image"],
        "pick, one view": official["by_views"]["1"],
        "pick, all views": official["pick"],
    }
    recalls = [f"recall@fpr{rate}{kind}" for rate in RATES for kind in ("", "_interval95")]
    kept = ("nominal", "positives", *recalls, "roc_auc", "operating_points")
    return {
        "title": MODELS[name],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "units": {unit: {key: figures[key] for key in kept} for unit, figures in units.items()},
    }


def markdown(models: dict[str, dict[str, Any]]) -> str:
    """Recall at both rates by unit and defect, and what the calibrated threshold gave."""
    rows = []
    for entry in models.values():
        for unit, figures in entry["units"].items():
            cells = [
                f"{figures[f'recall@fpr{rate}'][score]:.3f}"
                for rate in RATES
                for score in ("multi_pick", "package_defect", "combined")
            ]
            point = next(iter(figures["operating_points"].get("combined", ())), None)
            measured = f"{point['measured_fpr']:.4f} / {point['recall']:.3f}" if point else "-"
            rows.append((entry["title"], unit, *cells, f"{figures['roc_auc']['combined']:.3f}", measured))
    header = ("model", "unit", "multi 1 %", "package 1 %", "any 1 %", "multi 5 %", "package 5 %", "any 5 %")
    return reports.table((*header, "AUC", "measured FPR / recall at 1 % promised"), rows)


def roc_of(found: DefectRun) -> dict[str, dict[str, list[float]]]:
    """ROC of any defect at 200 rates, of single images and of picks from all their views."""
    part, rates = found.parts["official"], np.linspace(0, 1, 201)
    curves = {
        "image": curve_of(part.images, "combined"),
        "pick, all views": curve_of(part.whole, "combined"),
    }
    return {
        unit: {"fpr": rates.round(3).tolist(), "recall": np.interp(rates, c.fpr, c.recall).round(4).tolist()}
        for unit, c in curves.items()
    }


def plot(models: dict[str, dict[str, Any]], path: Path) -> None:
    """ROC of single images and of picks from all their views."""
    figure, axes = plots.new_axes()
    for name, style in zip(models, ("-", "--", ":"), strict=False):
        for number, (unit, roc) in enumerate(models[name]["roc"].items()):
            axes.plot(roc["fpr"], roc["recall"], style, color=f"C{number}", label=f"{name}, {unit}")
    axes.set(xlabel="false-positive rate", ylabel="recall, any defect", xlim=(0, 1), ylim=(0, 1))
    plots.finish_plot(figure, axes, path)


def result_of(name: str, steps: int, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge a model."""
    print(f"{name}: {seconds:.2f} s of processor per step, {steps} steps", flush=True)
    model, task, recipe = run(name, steps, options)
    found = judge(model, task, recipe)
    return {
        **entry_of(name, model, found),
        "roc": roc_of(found),
        "steps": steps,
        "processor_seconds_per_step": round(seconds, 3),
        "passes": round(steps * task.recipe.batch_size / len(task.dataset), 2),
    }


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What two results must share to be comparable; ``input_sha256`` is of the lists."""
    digest = hashlib.sha256()
    for name in ("train.csv", "test.csv"):
        digest.update((options.data / name).read_bytes())
    shared = {key: getattr(options, key) for key in ("seed", "threads", "resnet_lr", "set")}
    return {**shared, "fpr": FPR, "confidence": CONFIDENCE, "input_sha256": digest.hexdigest()}


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="not used: the benchmark trains its own models")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file and the plot")
    parser.add_argument("--data", type=Path, help="folder of defect images, see mca synth defects")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated, of these three")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resnet-lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], help="changes to the recipe, as for mca train")
    parser.add_argument("--work", type=Path, default=Path("runs") / NAME, help="folder of the runs, kept")
    options = parser.parse_args()
    options.names = [name.strip() for name in options.models.split(",")]
    if unknown := [name for name in options.names if name not in MODELS]:
        parser.error(f"--models {unknown[0]}: must be of {', '.join(MODELS)}")
    return options


def main() -> None:
    """Train and judge the models; write ``defects_learning-<device>.json`` and ``.png``."""
    options = parse()
    if options.data is None:
        print(f"{NAME} trains for hours and is left out: give --data to run it (see benchmarks/README.md)")
        return
    torch.set_num_threads(options.threads)
    names = buildable(options.names, "torchvision.models", lambda name: name != "nano")
    reports.new_folder(options.work)
    seconds = kept(
        options.work / f"seconds-{options.seed}.json",
        lambda: processor_seconds_per_step(["nano", *(name for name in names if name != "nano")], options),
    )
    steps = recipe_of("nano", options).budget.max_steps
    assert steps is not None
    budget = steps * seconds["nano"]
    models = {}
    with flushed_denormals():
        for name in names:
            steps_of_model = round(budget / seconds[name])
            folder = reports.new_folder(options.work / f"{name}-{options.seed}")
            models[name] = kept(
                folder / "result.json", partial(result_of, name, steps_of_model, seconds[name], options)
            )
            print(markdown(models), flush=True)
    facts = reports.environment(packages=("torch", "torchvision"))
    path = reports.new_folder(options.out) / f"{NAME}-{reports.device_slug(facts)}.json"
    document = {"benchmark": NAME, "settings": settings_of(options), "models": models}
    document["training_device"] = describe_device(select_device(options.device))
    reports.write_json(path, {**document, **facts})
    plot(models, path.with_suffix(".png"))
    print(path)


if __name__ == "__main__":
    main()
