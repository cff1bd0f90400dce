"""Learning rate over a run, and the moving average of its weights."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from mca_perception.backbone.adapters.names import adapter_key
from mca_perception.training.recipe import BudgetSection, OptimiserSection

# Names of parameters inside the backbone: of block N, and of what comes before the first block.
_BLOCK = re.compile(r"^backbone\.(?P<tower>.*?)\b(?:layers|blocks|resblocks)\.(?P<number>\d+)\.")
_EMBEDDING = re.compile(
    r"^backbone\.(?:.*[._])?(?:\w*embed\w*|\w+_token|conv1|ln_pre|norm_pre|pre_layrnorm)(?:\.|$)"
)


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


def layer_scales(names: list[str], layer_decay: float) -> dict[str, float]:
    """Factor on the learning rate of each parameter of a model whose backbone is ``backbone``.

    With ``L`` blocks, block ``l`` (from 0) gets ``layer_decay ** (L - l)`` and the embeddings get ``layer_decay **
    (L + 1)``, as in BEiT's fine-tuning. What follows the blocks, heads and adapters get 1 (adapters: specification of
    the adapter, section 6.2; their lowest would hardly train).
    """
    depths: dict[str, int] = defaultdict(int)
    for name in names:
        if block := _BLOCK.match(name):
            depths[block["tower"]] = max(depths[block["tower"]], int(block["number"]) + 1)

    def scale(name: str) -> float:
        if adapter_key(name) is not None:
            return 1.0
        if block := _BLOCK.match(name):
            return layer_decay ** (depths[block["tower"]] - int(block["number"]))
        return layer_decay ** (max(depths.values(), default=0) + 1) if _EMBEDDING.match(name) else 1.0

    return {name: scale(name) for name in names}


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Every parameter that trains, by the factor ``lr_scale`` on its learning rate and by weight decay.

    A module with an attribute ``lr_scale`` multiplies that of its parameters. Weight decay is on matrices and kernels
    only: not on vectors, tokens or tables.
    """
    scales = layer_scales([name for name, _ in model.named_parameters()], layer_decay)
    for prefix, module in model.named_modules():
        factor = getattr(module, "lr_scale", None)
        if isinstance(factor, float):
            scales |= {name: scales[name] * factor for name in scales if name.startswith(f"{prefix}.")}
    groups: dict[float, tuple[list[nn.Parameter], list[nn.Parameter]]] = defaultdict(lambda: ([], []))
    for name, parameter in trainable_parameters(model).items():
        is_vector = parameter.ndim < 2 or name.endswith(("_token", "embed_positions.A.weight"))
        groups[scales[name]][is_vector].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for scale, parts in sorted(groups.items())
        for parameters, decay in zip(parts, (weight_decay, 0.0), strict=True)
    ]


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of :func:`parameter_groups` its share of ``lr``."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_scale"]


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
