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
DEFECT_WEIGHTS = "defects.safetensors"
"""Of the defect head that was added to a bundle."""
# Parts of heads that start each other: two ways to train one dual encoder, and frames judged as images are.
SAME_PARTS = (
    ("heads.pretraining.", "heads.retrieval."),
    ("heads.clips.evidence.", "heads.defects.evidence."),
    ("heads.clips.classify_frame.", "heads.defects.classify."),
)


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
    """Copy every tensor whose name and shape the model shares; returns the names left untouched.

    Args:
        path: a weights file, or the folder of a run or bundle: bundles keep the heads that were added in own files.
        model: changed in place.

    Raises:
        RecipeError: the file or the folder's weights are missing, or share nothing with the model.
    """
    files = sorted(path.glob("*.safetensors")) if (path / WEIGHTS).is_file() else [path]
    if not files[0].is_file():
        raise RecipeError(
            f"init_from: {path / WEIGHTS if path.is_dir() else path} does not exist; train that recipe first"
        )
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    target = model.state_dict()
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
    for own, other in (*SAME_PARTS, *(pair[::-1] for pair in SAME_PARTS)):
        if name not in stored and name.startswith(own):
            return other + name.removeprefix(own)
    return name
