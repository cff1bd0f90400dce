"""Save and restore the state of a training run. Tensors and plain numbers only: loaded with ``weights_only``."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mca_perception.backbone.adapters import plain_key
from mca_perception.errors import RecipeError
from mca_perception.training.early_stopping import BestWeights
from mca_perception.training.schedule import WeightAverage

WEIGHTS = "weights.safetensors"
# Two ways to train one dual encoder: the heads of either start the other.
DUAL_ENCODER_HEADS = ("heads.pretraining.", "heads.retrieval.")


@dataclass
class TrainingState:
    """Where a run stands. ``minutes`` is training time without validation, over all resumed parts."""

    step: int = 0
    minutes: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


def save_training_state(
    path: Path,
    model: nn.Module,
    average: WeightAverage,
    optimiser: torch.optim.Optimizer,
    best: BestWeights,
    state: TrainingState,
) -> None:
    """Write everything that a run needs to go on, atomically."""
    content = {
        "model": model.state_dict(),
        "average": average.tensors,
        "optimiser": optimiser.state_dict(),
        "best": best.state_dict(),
        "step": state.step,
        "minutes": state.minutes,
        "metrics": state.metrics,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def load_training_state(
    path: Path,
    model: nn.Module,
    average: WeightAverage,
    optimiser: torch.optim.Optimizer,
    best: BestWeights,
) -> TrainingState:
    """Restore a run in place.

    Raises:
        RecipeError: the file does not belong to this recipe's model or optimiser.
    """
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise RecipeError(f"{path} is of another model than the recipe's: {error}") from error
    for name, tensor in content["average"].items():
        average.tensors[name].copy_(tensor)
    scales = [group["lr_scale"] for group in optimiser.param_groups]
    try:
        optimiser.load_state_dict(content["optimiser"])
    except ValueError as error:
        raise RecipeError(f"{path} is of another optimiser than the recipe's: {error}") from error
    for group, scale in zip(optimiser.param_groups, scales, strict=True):
        group["lr_scale"] = scale  # the recipe's, as is the learning rate
    best.load_state_dict(content.get("best", {}))  # not in states of runs that had no monitor yet
    return TrainingState(content["step"], content["minutes"], content["metrics"])


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's weights as safetensors, atomically; layers wrapped for LoRA under their plain names."""
    temporary = path.with_suffix(".tmp")
    tensors = {
        plain_key(name): tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, temporary)
    temporary.replace(path)


def load_shared_weights(path: Path, model: nn.Module) -> list[str]:
    """Copy every tensor of a weights file whose name and shape the model shares; returns the names left untouched.

    Raises:
        RecipeError: the file is missing or shares nothing with the model.
    """
    if not path.is_file():
        raise RecipeError(f"init_from: {path} does not exist; train that recipe first")
    stored, target = load_file(path), model.state_dict()
    names = {name: _stored_name(plain_key(name), stored) for name in target}
    shared = {
        name: stored[names[name]]
        for name, tensor in target.items()
        if names[name] in stored and stored[names[name]].shape == tensor.shape
    }
    if not shared:
        raise RecipeError(f"init_from: {path} shares no weights with this recipe's model")
    model.load_state_dict(shared, strict=False)
    return [name for name in target if name not in shared]


def _stored_name(name: str, stored: Container[str]) -> str:
    """Name under which a file has a tensor of the model, if it has it."""
    for own, other in (DUAL_ENCODER_HEADS, DUAL_ENCODER_HEADS[::-1]):
        if name not in stored and name.startswith(own):
            return other + name.removeprefix(own)
    return name
