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
from mca_perception.training.distributed import Processes
from mca_perception.training.early_stopping import BestWeights
from mca_perception.training.hardware import describe_device, select_device, uses_bfloat16
from mca_perception.training.model import PerceptionModel
from mca_perception.training.recipe import Recipe
from mca_perception.training.schedule import (
    WeightAverage,
    learning_rate,
    parameter_groups,
    progress,
    set_learning_rate,
    trainable_parameters,
)
from mca_perception.training.task import Task

LOG = "log.jsonl"
LOG_EVERY_STEPS = 50
ALONE = Processes()
console = Console(stderr=True)


class EndlessBatches:
    """This process' batches of a task, epoch after epoch, each epoch with its own seed."""

    def __init__(self, task: Task, seed: int, first_epoch: int, processes: Processes) -> None:
        self.task = task
        self.seed = seed
        self.epoch = first_epoch
        self.processes = processes
        self.iterator: Iterator[Any] = iter(())

    def __next__(self) -> Any:
        for _ in range(2):
            try:
                return next(self.iterator)
            except StopIteration:
                seed = self.seed + 1000 * self.epoch
                self.iterator = iter(self.processes.share(self.task.batches(seed)))
                self.epoch += 1
        raise RecipeError(
            f"task {self.task.name} has less data than one batch per process; add data or lower its batch_size"
        )


def train(
    recipe: Recipe,
    model: PerceptionModel,
    tasks: list[Task],
    out: Path,
    *,
    resume: bool = False,
    processes: Processes = ALONE,
) -> TrainingState:
    """Train until the budget is used; leaves the averaged weights in ``model``: the last, or the best if monitored.

    Args:
        recipe: settings.
        model: backbone and heads; changed in place.
        tasks: the tasks whose heads ``model`` holds.
        out: folder for ``state.pt`` (to resume from), ``log.jsonl`` and the final ``weights.safetensors``.
        resume: go on from ``state.pt`` when it is there.
        processes: those that share the work; only the first validates and writes.

    Returns:
        The final state with the validation metrics of the resulting weights; none in other processes than the first.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came to any process; the step was finished and the state saved.
    """
    device = processes.own_device(select_device(recipe.device))
    model.to(device).train()
    processes.copy_first(model)
    torch.manual_seed(recipe.seed + processes.index)
    console.print(str(trainable_report(model)), highlight=False)
    run = _Run(recipe, model, tasks, device, out, processes)
    if resume and run.checkpoint.is_file():
        run.load()
    with _stop_requests() as stop:
        run.until_done(stop)
        run.save()
        # A launcher ends all processes as soon as one has ended: none may before the state is saved.
        processes.agree(run.state.minutes, False, device)
    if stop.is_set():
        console.print(f"stopped at step {run.state.step}; go on with --resume")
        raise KeyboardInterrupt
    run.average.swap(model)
    if processes.is_first:
        run.finish()
    return run.state


class _Run:
    """The moving parts of one call of :func:`train`."""

    def __init__(
        self,
        recipe: Recipe,
        model: PerceptionModel,
        tasks: list[Task],
        device: torch.device,
        out: Path,
        processes: Processes,
    ) -> None:
        settings = recipe.optimiser
        self.recipe, self.model, self.tasks = recipe, model, tasks
        self.device, self.out, self.processes = device, out, processes
        self.backbone: Backbone = model.backbone
        if recipe.compile:
            self.backbone = cast(Backbone, torch.compile(model.backbone, dynamic=False))
        self.parameters = list(trainable_parameters(model).values())
        groups = parameter_groups(model, settings.weight_decay, settings.layer_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)
        self.average = WeightAverage(model, settings.ema_decay)
        self.best = BestWeights.of(recipe.budget)
        self.state = TrainingState()
        self.sources = self._open_sources()
        self.reduced_precision = uses_bfloat16(recipe.precision, device)
        self.checkpoint = out / "state.pt"
        out.mkdir(parents=True, exist_ok=True)

    def _open_sources(self) -> dict[str, EndlessBatches]:
        return {
            task.name: EndlessBatches(task, self.recipe.seed, self.state.step, self.processes)
            for task in self.tasks
        }

    def load(self) -> None:
        """Go on where :meth:`save` was."""
        self.state = load_training_state(self.checkpoint, self.model, self.average, self.optimiser, self.best)
        self.sources = self._open_sources()
        console.print(f"resumed at step {self.state.step} after {self.state.minutes:.1f} min")

    def save(self) -> None:
        """Write ``state.pt``."""
        if self.processes.is_first:
            save_training_state(
                self.checkpoint, self.model, self.average, self.optimiser, self.best, self.state
            )

    def until_done(self, stop: threading.Event) -> None:
        """Step until the budget or the patience is used, or any process is asked to stop."""
        state, budget = self.state, self.recipe.budget
        saved = validated = state.minutes
        window = _Means()
        ended = self.best.exhausted
        while progress(state.step, state.minutes, budget) < 1.0 and not ended and not stop.is_set():
            started = time.monotonic()
            lr = learning_rate(state.step, progress(state.step, state.minutes, budget), self.recipe.optimiser)
            window.add(self.step(state.step, lr))
            state.step += 1
            minutes = state.minutes + (time.monotonic() - started) / 60
            state.minutes, stopped = self.processes.agree(minutes, stop.is_set(), self.device)
            if stopped:
                stop.set()
            if state.step % LOG_EVERY_STEPS == 0:
                self.log({**self._position(), "lr": round(lr, 6), **window.take()})
            if self._validation_is_due(state.minutes - validated):
                ended = self._validate_average()
                validated = state.minutes
            if state.minutes - saved >= budget.checkpoint_minutes:
                self.save()
                saved = state.minutes

    def _validation_is_due(self, minutes: float) -> bool:
        budget = self.recipe.budget
        if budget.validate_steps is not None:
            return self.state.step % budget.validate_steps == 0
        return minutes >= budget.validate_minutes

    def _validate_average(self) -> bool:
        """Validate the averaged weights, in the first process; true in all of them if the patience is used up."""
        if self.processes.is_first:
            self.average.swap(self.model)
            self.state.metrics = validate(self.model, self.tasks, self.device)
            self.best.update(self.state.metrics, self.model, self.state.step)
            self.average.swap(self.model)
            self.log({**self._position(), **self.state.metrics})
        return self.processes.agree(0.0, self.best.exhausted, self.device)[1]

    def finish(self) -> None:
        """Validate the average that ``model`` holds now, choose between it and the best one, write the result."""
        state = self.state
        save_weights(self.out / WEIGHTS, self.model)
        state.metrics = validate(self.model, self.tasks, self.device)
        position = {**self._position(), "device": describe_device(self.device)}
        self.best.update(state.metrics, self.model, state.step)
        if self.best.monitor is not None:
            self.best.restore(self.model)
            save_weights(self.out / WEIGHTS, self.model)
            state.metrics = self.best.metrics
            position["weights_of_step"] = self.best.step
        self.log({**position, **state.metrics})

    def step(self, number: int, lr: float) -> dict[str, Tensor]:
        """One optimiser step over every task whose turn it is; returns the means of this process' loss terms."""
        set_learning_rate(self.optimiser, lr)
        self.optimiser.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        for task in self.tasks:
            if number % task.every == 0:
                terms.update(self._accumulate(task))
        self.processes.average_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.optimiser.clip_norm)
        if not torch.isfinite(norm):
            raise RecipeError(
                f"the gradient is not finite at step {number}; lower optimiser.lr or use precision=fp32"
            )
        self.optimiser.step()
        self.average.update(self.model, number)
        return terms

    def _accumulate(self, task: Task) -> dict[str, Tensor]:
        """Add a task's gradient, the mean over its batches of this step; returns the means of its loss terms."""
        batches = self.recipe.optimiser.accumulation_steps
        sums: dict[str, Tensor] = {}
        for _ in range(batches):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced_precision):
                losses = task.losses(self.backbone, next(self.sources[task.name]), self.device)
            # One backward pass per batch keeps only one batch's activations in memory.
            (task.weight / batches * torch.stack(list(losses.values())).sum()).backward()  # type: ignore[no-untyped-call]
            for name, value in losses.items():
                key = f"{task.name}/{name}"
                sums[key] = sums.get(key, 0.0) + value.detach() * (task.every / batches)
        return sums

    def _position(self) -> dict[str, Any]:
        return {"step": self.state.step, "minutes": round(self.state.minutes, 2)}

    def log(self, entry: dict[str, Any]) -> None:
        """One JSON line to ``log.jsonl`` and to the console, from the first process."""
        if not self.processes.is_first:
            return
        with (self.out / LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        console.print("  ".join(f"{key} {value}" for key, value in entry.items()), highlight=False)


class _Means:
    """Running means of loss terms per step."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.steps = 0

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Take one step's terms."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.steps += 1

    def take(self) -> dict[str, float]:
        """The means so far; starts anew."""
        means = {name: round(value / self.steps, 4) for name, value in self.sums.items()}
        self.sums, self.steps = {}, 0
        return means


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
