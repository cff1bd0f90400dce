"""Learning rate over a run, and the moving average of its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mca_perception.training.recipe import BudgetSection, OptimiserSection


def progress(step: int, elapsed_minutes: float, budget: BudgetSection) -> float:
    """Used fraction of the budget in [0, 1]: the larger of steps and minutes."""
    fractions = [0.0]
    if budget.max_steps is not None:
        fractions.append(step / budget.max_steps)
    if budget.max_minutes is not None:
        fractions.append(elapsed_minutes / budget.max_minutes)
    return min(1.0, max(fractions))


def learning_rate(step: int, fraction: float, settings: OptimiserSection) -> float:
    """Linear warm-up by steps, flat until ``flat_fraction`` of the budget, then cosine to the final rate."""
    warmup = min(1.0, (step + 1) / settings.warmup_steps)
    if fraction <= settings.flat_fraction:
        return settings.lr * warmup
    tail = (fraction - settings.flat_fraction) / max(1e-9, 1.0 - settings.flat_fraction)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, tail)))
    return settings.lr * warmup * (settings.final_lr_fraction + (1 - settings.final_lr_fraction) * cosine)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices and kernels only: not on vectors, tokens or position tables."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and not name.endswith(("_token", "embed_positions.A.weight"))
        (decayed if is_matrix else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


class WeightAverage:
    """Exponential moving average of a model's parameters, with a short memory at the start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights after optimiser step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        names, parameters = zip(*model.named_parameters(), strict=True)
        torch._foreach_lerp_([self.tensors[name] for name in names], list(parameters), 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights with the average; a second call undoes the first."""
        for name, parameter in model.named_parameters():
            current = parameter.detach().clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(current)
