"""Load weights into a backbone: official BEiT-3 ``.pth`` layouts and our safetensors.

Only tensors are ever read: safetensors, or ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mca_perception.backbone.beit3 import UNUSED_POSITIONS, BEiT3, resize_patch_positions

POSITION_KEY = "encoder.embed_positions.A.weight"
# Prefixes under which a backbone's keys may stand: the official fine-tuning wrapper, and our task models.
PREFIXES = ("beit3.", "backbone.")


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


@dataclass(frozen=True)
class LoadReport:
    """What a load did, key by key.

    Attributes:
        loaded: keys copied into the model.
        missing: keys of the model that the file lacks (they keep their values).
        unexpected: keys of the file that the model has no place for, by group (text expert, heads, other).
        positions_resized: the position table was interpolated to the model's grid.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    positions_resized: bool = False


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read tensors from a ``.safetensors`` or a ``.pth`` file (the latter under ``model``, ``module`` or bare).

    Raises:
        CheckpointError: the file is absent, truncated, holds anything but tensors, or wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read as tensors only: {error}") from error
    for wrapper in ("model", "module"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"checkpoint {path} is not a table of tensors")
    return content


def load_checkpoint(model: BEiT3, path: str | Path) -> LoadReport:
    """Load a checkpoint into ``model`` in place.

    The image position table is resized when the grids differ. Text experts and task heads in the file are reported,
    not loaded.

    Raises:
        CheckpointError: the file cannot be read, shares no key with the model, or a shape differs (the first
            differing key and both shapes are named); the model is left unchanged.
    """
    tensors = _strip_prefix(read_state_dict(path))
    target = model.state_dict()
    shared = [key for key in target if key in tensors]
    if not shared:
        raise CheckpointError(
            f"checkpoint {path} holds no BEiT-3 vision weights (first key: {next(iter(tensors), 'none')})"
        )
    resized = False
    if POSITION_KEY in shared and tensors[POSITION_KEY].shape[0] != target[POSITION_KEY].shape[0]:
        tensors[POSITION_KEY] = _resize_position_table(tensors[POSITION_KEY], model.encoder.grid_size, path)
        resized = True
    for key in shared:
        if tensors[key].shape != target[key].shape:
            raise CheckpointError(
                f"checkpoint {path} does not fit the model: {key} is {tuple(tensors[key].shape)} in the file and "
                f"{tuple(target[key].shape)} in the model; choose the backbone that the file was made for"
            )
    depth_in_file = 1 + max(
        (int(key.split(".")[2]) for key in tensors if key.startswith("encoder.layers.")), default=-1
    )
    if depth_in_file != len(model.encoder.layers):
        raise CheckpointError(
            f"checkpoint {path} does not fit the model: it has {depth_in_file} encoder layers, "
            f"the model {len(model.encoder.layers)}"
        )
    model.load_state_dict({key: tensors[key] for key in shared}, strict=False)
    return LoadReport(
        loaded=tuple(shared),
        missing=tuple(key for key in target if key not in tensors),
        unexpected=_group(key for key in tensors if key not in target),
        positions_resized=resized,
    )


def _strip_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in tensors):
            return {key.removeprefix(prefix): value for key, value in tensors.items()}
    return dict(tensors)


def _resize_position_table(table: Tensor, grid_size: int, path: str | Path) -> Tensor:
    first_patch = UNUSED_POSITIONS + 1
    old_grid = round((table.shape[0] - first_patch) ** 0.5)
    if old_grid**2 != table.shape[0] - first_patch:
        raise CheckpointError(
            f"checkpoint {path}: position table with {table.shape[0]} rows is not a square grid"
        )
    patches = resize_patch_positions(table[first_patch:], (old_grid, old_grid), (grid_size, grid_size))
    return torch.cat([table[:first_patch], patches])


def _group(keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for key in keys:
        is_text = ".B." in key or key.startswith("text_embed")
        is_backbone = key.startswith(("encoder.", "vision_embed."))
        groups.setdefault("text expert" if is_text else "backbone" if is_backbone else "heads", []).append(
            key
        )
    return {name: tuple(members) for name, members in groups.items()}
