"""Training a segmentation head until it knows a few totes by heart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mca_perception.backbone import Backbone
from mca_perception.datasets.synth.tote_set import ToteSettings, write_totes
from mca_perception.training.task import Task

CPU = torch.device("cpu")


def write_eight_totes(folder: Path) -> None:
    """Write eight synthesised totes of 2 to 5 objects, all in the split ``train``."""
    write_totes(ToteSettings(folder, 8, 3, products=12, split="train=1.0", objects="2-5"), 1)


def overfit(task: Task, backbone: Backbone, collate: Callable[[list[Any]], Any], *, steps: int) -> float:
    """Mask AP50 on the eight totes after training on them alone, four at a time."""
    samples = [task.validation[index] for index in range(len(task.validation))]
    assert len(samples) == 8
    fit(task, backbone, samples, collate, steps=steps, batch=4, rate=1e-3)
    backbone.eval()
    task.head.eval()
    return task.validate(backbone, CPU)["mask_map50"]


def fit(
    task: Task,
    backbone: Backbone,
    samples: Sequence[Any],
    collate: Callable[[list[Any]], Any],
    *,
    steps: int,
    batch: int,
    rate: float,
) -> list[dict[str, float]]:
    """Train on fixed samples with warm-up, and decay over the last third; the loss terms of every step."""
    parameters = [*backbone.parameters(), *task.head.parameters()]
    optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.05)
    draws = np.random.default_rng(0)
    history = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10, max(0.05, (steps - step) / (0.3 * steps)))
        chosen = draws.permutation(len(samples))[:batch]
        losses: dict[str, Tensor] = task.losses(backbone, collate([samples[i] for i in chosen]), CPU)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        history.append({name: value.item() for name, value in losses.items()})
    return history
