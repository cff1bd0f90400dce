"""The one training loop: every task's losses on the shared backbone, resumable, interruptible."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from mca_perception.backbone import Backbone
from mca_perception.backbone.adapters import trainable_report
from mca_perception.errors import RecipeError
from mca_perception.training.checkpoints import (
    WEIGHTS,
    TrainingState,
    load_training_state,
    save_training_state,
    save_weights,
)
from mca_perception.training.model import PerceptionModel
from mca_perception.training.recipe import Recipe
from mca_perception.training.schedule import WeightAverage, learning_rate, parameter_groups, progress
from mca_perception.training.task import Task

LOG = "log.jsonl"
LOG_EVERY_STEPS = 50
console = Console(stderr=True)


class EndlessBatches:
    """Batches of a task, epoch after epoch, each epoch with its own seed."""

    def __init__(self, task: Task, seed: int, first_epoch: int) -> None:
        self.task = task
        self.seed = seed
        self.epoch = first_epoch
        self.iterator: Iterator[Any] = iter(())

    def __next__(self) -> Any:
        for _ in range(2):
            try:
                return next(self.iterator)
            except StopIteration:
                self.iterator = iter(self.task.batches(self.seed + 1000 * self.epoch))
                self.epoch += 1
        raise RecipeError(
            f"task {self.task.name} has less data than one batch; add data or lower its batch_size"
        )


def train(
    recipe: Recipe, model: PerceptionModel, tasks: list[Task], out: Path, *, resume: bool = False
) -> TrainingState:
    """Train until the budget is used; leaves the averaged weights in ``model``.

    Args:
        recipe: settings.
        model: backbone and heads; changed in place.
        tasks: the tasks whose heads ``model`` holds.
        out: folder for ``state.pt`` (to resume from), ``log.jsonl`` and the final ``weights.safetensors``.
        resume: go on from ``state.pt`` when it is there.

    Returns:
        The final state with the last validation metrics.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the step was finished and the state saved.
    """
    torch.manual_seed(recipe.seed)
    device = select_device(recipe.device)
    model.to(device).train()
    console.print(str(trainable_report(model)), highlight=False)
    state, average = TrainingState(), WeightAverage(model, recipe.optimiser.ema_decay)
    groups = parameter_groups(model, recipe.optimiser.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=recipe.optimiser.lr, betas=recipe.optimiser.betas)
    checkpoint = out / "state.pt"
    if resume and checkpoint.is_file():
        state = load_training_state(checkpoint, model, average, optimiser)
        console.print(f"resumed at step {state.step} after {state.minutes:.1f} min")
    backbone = model.backbone
    if recipe.compile:
        backbone = cast(Backbone, torch.compile(backbone, dynamic=False))
    sources = {task.name: EndlessBatches(task, recipe.seed, first_epoch=state.step) for task in tasks}
    run = _Run(recipe, model, backbone, tasks, sources, optimiser, average, device, out)
    with _stop_requests() as stop:
        run.until_done(state, stop)
    save_training_state(checkpoint, model, average, optimiser, state)
    if stop.is_set():
        console.print(f"stopped at step {state.step}; go on with --resume")
        raise KeyboardInterrupt
    average.swap(model)
    save_weights(out / WEIGHTS, model)
    state.metrics = validate(model, tasks, device)
    run.log(
        {
            "step": state.step,
            "minutes": round(state.minutes, 2),
            "device": describe_device(device),
            **state.metrics,
        }
    )
    return state


class _Run:
    """The moving parts of one call of :func:`train`."""

    def __init__(
        self,
        recipe: Recipe,
        model: PerceptionModel,
        backbone: Backbone,
        tasks: list[Task],
        sources: dict[str, EndlessBatches],
        optimiser: torch.optim.Optimizer,
        average: WeightAverage,
        device: torch.device,
        out: Path,
    ) -> None:
        self.recipe, self.model, self.backbone = recipe, model, backbone
        self.tasks, self.sources = tasks, sources
        self.optimiser, self.average = optimiser, average
        self.device, self.out = device, out
        self.reduced_precision = uses_bfloat16(recipe.precision, device)
        out.mkdir(parents=True, exist_ok=True)

    def until_done(self, state: TrainingState, stop: threading.Event) -> None:
        budget = self.recipe.budget
        saved = validated = state.minutes
        window: dict[str, float] = {}
        counted = 0
        while progress(state.step, state.minutes, budget) < 1.0 and not stop.is_set():
            started = time.monotonic()
            lr = learning_rate(state.step, progress(state.step, state.minutes, budget), self.recipe.optimiser)
            for name, value in self.step(state.step, lr).items():
                window[name] = window.get(name, 0.0) + float(value)
            counted += 1
            state.step += 1
            state.minutes += (time.monotonic() - started) / 60
            if state.step % LOG_EVERY_STEPS == 0:
                means = {name: round(value / counted, 4) for name, value in window.items()}
                self.log(
                    {"step": state.step, "minutes": round(state.minutes, 2), "lr": round(lr, 6), **means}
                )
                window.clear()
                counted = 0
            if state.minutes - saved >= budget.checkpoint_minutes:
                save_training_state(self.out / "state.pt", self.model, self.average, self.optimiser, state)
                saved = state.minutes
            if state.minutes - validated >= budget.validate_minutes:
                self.average.swap(self.model)
                state.metrics = validate(self.model, self.tasks, self.device)
                self.average.swap(self.model)
                self.log({"step": state.step, "minutes": round(state.minutes, 2), **state.metrics})
                validated = state.minutes

    def step(self, number: int, lr: float) -> dict[str, Tensor]:
        """One optimiser step over every task whose turn it is."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        for task in self.tasks:
            if number % task.every:
                continue
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced_precision):
                losses = task.losses(self.backbone, next(self.sources[task.name]), self.device)
            # One backward pass per task keeps only one task's activations in memory.
            (task.weight * torch.stack(list(losses.values())).sum()).backward()  # type: ignore[no-untyped-call]
            terms.update(
                {f"{task.name}/{name}": value.detach() * task.every for name, value in losses.items()}
            )
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimiser.clip_norm)
        if not torch.isfinite(norm):
            raise RecipeError(
                f"the gradient is not finite at step {number}; lower optimiser.lr or use precision=fp32"
            )
        self.optimiser.step()
        self.average.update(self.model, number)
        return terms

    def log(self, entry: dict[str, Any]) -> None:
        """One JSON line to ``log.jsonl`` and to the console."""
        with (self.out / LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        console.print("  ".join(f"{key} {value}" for key, value in entry.items()), highlight=False)


def validate(model: PerceptionModel, tasks: list[Task], device: torch.device) -> dict[str, float]:
    """Every task's validation metrics, as ``task/metric``, in float32 and evaluation mode."""
    with _evaluation_mode(model):
        return {
            f"{task.name}/{name}": round(value, 4)
            for task in tasks
            for name, value in task.validate(model.backbone, device).items()
        }


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a step is never cut in half."""
    stop = threading.Event()
    handled = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda *_: stop.set()) for number in handled]
    try:
        yield stop
    finally:
        for number, handler in zip(handled, previous, strict=True):
            signal.signal(number, handler)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()


def select_device(name: str) -> torch.device:
    """``auto`` is the GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """``auto`` computes in bfloat16 where the hardware has it: emulated, it is several times slower than float32."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def describe_device(device: torch.device) -> str:
    """Name of the hardware, for logs and model cards."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name", "CPU") if device.type == "cpu" else device.type
    return f"{name}, {torch.get_num_threads()} threads"
