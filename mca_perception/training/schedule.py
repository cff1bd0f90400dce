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


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Every parameter that trains, with weight decay on matrices and kernels only: not on vectors, tokens or tables."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in trainable_parameters(model).items():
        is_matrix = parameter.ndim >= 2 and not name.endswith(("_token", "embed_positions.A.weight"))
        (decayed if is_matrix else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


class WeightAverage:
    """Exponential moving average of a model's trainable parameters, with a short memory at the start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights after optimiser step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current: list[Tensor] = [model.get_parameter(name) for name in self.tensors]
        torch._foreach_lerp_(list(self.tensors.values()), current, 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights with the average; a second call undoes the first."""
        for name, average in self.tensors.items():
            parameter = model.get_parameter(name)
            current = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(current)
