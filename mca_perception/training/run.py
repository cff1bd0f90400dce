"""A training run as a folder: recipe, log, curves, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from mca_perception.backbone.adapters import active_adapter, save_adapter
from mca_perception.errors import RecipeError
from mca_perception.training.checkpoints import WEIGHTS, TrainingState, load_shared_weights
from mca_perception.training.distributed import join_processes
from mca_perception.training.hardware import flushed_denormals, select_device
from mca_perception.training.loop import LOG, console, train
from mca_perception.training.model import PerceptionModel, build
from mca_perception.training.recipe import Recipe, load_recipe
from mca_perception.training.task import Task

RECIPE = "recipe.yaml"
ADAPTER = "adapter.safetensors"


def run_recipe(recipe: Recipe, out: Path, *, resume: bool = False) -> TrainingState:
    """Train a recipe into the folder ``out``, together with the other processes that a launcher may have started.

    Returns:
        The final state; its metrics are empty in all processes but the first.

    Raises:
        RecipeError: the folder holds a run already and ``resume`` is not set.
    """
    with flushed_denormals(), join_processes(select_device(recipe.device)) as processes:
        if processes.is_first:
            _open_folder(recipe, out, resume)
        else:
            console.quiet = True
        torch.manual_seed(recipe.seed)
        model, tasks = build(recipe)
        for task in tasks:
            for part, reasons in task.skipped.items():
                for reason, count in reasons.items():
                    console.print(f"{task.name}, {part} data: skipped {count} x {reason}", highlight=False)
        state = train(recipe, model, tasks, out, resume=resume, processes=processes)
        if processes.is_first:
            _finish(model, out)
    return state


def _open_folder(recipe: Recipe, out: Path, resume: bool) -> None:
    if (out / RECIPE).exists() and not resume:
        raise RecipeError(
            f"{out} holds a run already; add --resume to go on with it, or choose another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / RECIPE).write_text(
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8"
    )


def _finish(model: PerceptionModel, out: Path) -> None:
    if (adapter := active_adapter(model.backbone)) is not None:
        save_adapter(model.backbone, adapter, out / ADAPTER)
    plot_curves(out)


def load_run(folder: Path) -> tuple[Recipe, PerceptionModel, list[Task], list[dict[str, Any]]]:
    """Recipe, trained model, tasks and log of a finished run.

    Raises:
        RecipeError: the folder is no finished run.
    """
    if not (folder / WEIGHTS).is_file():
        raise RecipeError(f"{folder} holds no {WEIGHTS}; let `mca train` finish there first")
    recipe = load_recipe(folder / RECIPE)
    backbone = recipe.backbone.model_copy(update={"checkpoint": None})
    recipe = recipe.model_copy(update={"init_from": None, "backbone": backbone})
    model, tasks = build(recipe)
    untouched = load_shared_weights(folder / WEIGHTS, model)
    if untouched:
        raise RecipeError(f"{folder / WEIGHTS} lacks {untouched[0]}; it is of another recipe")
    return recipe, model, tasks, read_log(folder)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Entries of ``log.jsonl``."""
    return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]


def plot_curves(folder: Path) -> None:
    """Draw losses and validation metrics over training minutes to ``curves.png``."""
    from matplotlib.figure import Figure

    entries = read_log(folder)
    series: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        for name, value in entry.items():
            if "/" in name:
                series.setdefault(name, []).append((entry["minutes"], value))
    validated = {name for entry in entries if "lr" not in entry for name in entry if "/" in name}
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, title in zip(figure.subplots(1, 2), ("training losses", "validation metrics"), strict=True):
        for name, points in series.items():
            if (name in validated) == (title == "validation metrics"):
                axes.plot(*zip(*points, strict=True), label=name, marker="o" if name in validated else None)
        axes.set(title=title, xlabel="minutes")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(folder / "curves.png", dpi=120)
