"""A regression as a training task: a backbone of two layers, mean loss, no random draws; a program for launchers."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mca_perception.backbone import Backbone
from mca_perception.training.checkpoints import TrainingState
from mca_perception.training.distributed import join_processes
from mca_perception.training.loop import train
from mca_perception.training.model import PerceptionModel
from mca_perception.training.recipe import Recipe

FEATURES = 6


class ToyBackbone(Backbone):
    """Two linear layers; `unused` never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 4))
        self.unused = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"encoder_out": self.layers(images)}


class ToyTask:
    """Fits a fixed random function; `validate` returns the next of `scores`, and the last one again and again."""

    name = "identification"
    every = 1
    weight = 1.0

    signal_at = -1  # number of the step in which this process asks itself to stop

    def __init__(self, batch_size: int, scores: tuple[float, ...] = (0.0,)) -> None:
        self.head = nn.Linear(4, 1)
        self.batch_size, self.scores, self.validations = batch_size, scores, 0
        self.steps = 0
        self.skipped: dict[str, Counter[str]] = {}
        generator = torch.Generator().manual_seed(5)
        inputs = torch.randn(32, FEATURES, generator=generator)
        self.dataset = TensorDataset(inputs, inputs.prod(1, keepdim=True) + inputs[:, :1])

    def batches(self, seed: int) -> Iterable[Any]:
        """All items in the order of `seed`."""
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(self.dataset, self.batch_size, shuffle=True, drop_last=True, generator=generator)

    def losses(self, backbone: Backbone, batch: Any, device: torch.device) -> dict[str, Tensor]:
        """Mean squared error."""
        if self.steps == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.steps += 1
        inputs, truth = batch
        return {"error": (self.head(backbone(inputs)["encoder_out"]) - truth).square().mean()}

    def validate(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        """The next score."""
        score = self.scores[min(self.validations, len(self.scores) - 1)]
        self.validations += 1
        return {"recall@1": score}


def toy_recipe(**sections: dict[str, Any]) -> Recipe:
    """A recipe for :class:`ToyTask` with changes per section."""
    content: dict[str, Any] = {
        "name": "toy",
        "backbone": {"name": "toy"},
        "identification": {"data": "toy"},
        "optimiser": {"warmup_steps": 1, "lr": 1e-2, "ema_decay": 0.0},
        "budget": {"max_steps": 2},
        "precision": "fp32",
        "device": "cpu",
    }
    for name, changes in sections.items():
        content[name] = {**content[name], **changes}
    return Recipe.model_validate(content)


def train_toy(
    out: Path, recipe: Recipe, batch_size: int, scores: tuple[float, ...] = (0.0,), *, resume: bool = False
) -> tuple[PerceptionModel, TrainingState]:
    """Train from the same first weights every time, together with the processes of a launcher."""
    with join_processes(torch.device("cpu")) as processes:
        torch.manual_seed(
            3 + processes.index
        )  # other processes start elsewhere: they must take over the first's
        task = ToyTask(batch_size, scores)
        model = PerceptionModel(ToyBackbone(), {task.name: task.head})
        state = train(recipe, model, [task], out, resume=resume, processes=processes)
    return model, state


if __name__ == "__main__":
    folder, size, steps, signalled = sys.argv[1:]
    if os.environ.get("RANK") == "1":
        ToyTask.signal_at = int(signalled)
    train_toy(Path(folder), toy_recipe(budget={"max_steps": int(steps)}), int(size))
