"""Bring the tensors of a file to the keys and shapes of a model, or say what stands in the way.

Rules: specification of the framework, section 5.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from mca_perception.backbone.beit3 import UNUSED_POSITIONS, resize_patch_positions
from mca_perception.backbone.blocks import SHARED, TEXT, VISION
from mca_perception.backbone.checkpoints.layouts import (
    ADAPTERS,
    POSITION_KEY,
    SHARED_WEIGHTS,
    Contents,
    backbone_group,
    grouped,
)
from mca_perception.errors import CheckpointError

SharedSource = Literal["A", "B", "mean"]

ROWS_BEFORE_PATCHES = UNUSED_POSITIONS + 1  # and the CLS token

# timm keeps no mask token, and models with normalize_output=False have no final LayerNorm.
_OPTIONAL = ("vision_embed.mask_token", "encoder.layer_norm.")
_LAYERS = "encoder.layers."


@dataclass(frozen=True)
class Fit:
    """What of a file goes into a model.

    Attributes:
        tensors: by the model's keys, in the model's shapes and the file's data types.
        missing: keys of the model that the file lacks, by group.
        unexpected: keys of the file that the model has no place for, by group.
        positions_resized: the position table of images was interpolated to the model's grid.
    """

    tensors: dict[str, Tensor]
    missing: dict[str, tuple[str, ...]]
    unexpected: dict[str, tuple[str, ...]]
    positions_resized: bool


def fit(
    contents: Contents,
    target: Mapping[str, Tensor],
    path: str | Path,
    init_shared_from: SharedSource | None = None,
) -> Fit:
    """Match a file with a model's state dict.

    A group of keys (an expert, the shared weights) that only one side has is reported; one that both have must agree
    key by key and in every shape. Adapters, the mask token and the final LayerNorm may be absent on either side.

    Args:
        contents: the file's tensors.
        target: the model's state dict; shapes count, and values are not read, so that it may be on ``meta``.
        path: of the file, for messages.
        init_shared_from: where a model with shared attention takes its weights in a file with decoupled attention.

    Raises:
        CheckpointError: the file does not fit; the first differing key and both shapes are named.
    """
    source, not_chosen = _share_attention(contents.backbone, target, path, init_shared_from)
    required = _common_groups(source, target)
    if not required:
        raise CheckpointError(
            f"checkpoint {path} holds no weights for this model: it has {_names(source, contents.heads)}, the model "
            f"{_names(target)}; choose another file, or a backbone of other modalities"
        )
    fitted: dict[str, Tensor] = {}
    resized = False
    for key, value in target.items():
        tensor = source.get(key)
        if tensor is None:
            if backbone_group(key) in required and not key.startswith(_OPTIONAL):
                raise _difference(path, key, source, target)
            continue
        if key == POSITION_KEY and tensor.ndim == 2 and tensor.shape[1:] == value.shape[1:]:
            resized = tensor.shape != value.shape
            tensor = resize_position_table(tensor, value.shape[0], path)
        if tensor.shape != value.shape or tensor.is_floating_point() != value.is_floating_point():
            raise _difference(path, key, source, target)
        fitted[key] = tensor
    for key in source:
        if key not in target and backbone_group(key) in required and not key.startswith(_OPTIONAL):
            raise _difference(path, key, source, target)
    return Fit(
        tensors=fitted,
        missing=grouped(key for key in target if key not in source),
        unexpected=grouped([*not_chosen, *(key for key in source if key not in target)], contents.heads),
        positions_resized=resized,
    )


def resize_position_table(table: Tensor, rows: int, path: str | Path) -> Tensor:
    """Interpolate the position table of images ``[g*g + 3, D]`` to ``[rows, D]``; the first three rows stay.

    Raises:
        CheckpointError: the table's patches are no square grid.
    """
    if table.shape[0] == rows:
        return table
    old, new = (isqrt(max(count - ROWS_BEFORE_PATCHES, 0)) for count in (table.shape[0], rows))
    if old == 0 or old**2 != table.shape[0] - ROWS_BEFORE_PATCHES:
        raise CheckpointError(
            f"checkpoint {path}: the {table.shape[0]} rows of {POSITION_KEY} are not {ROWS_BEFORE_PATCHES} and a "
            "square grid of patches; use a file of a model for square images"
        )
    patches = resize_patch_positions(table[ROWS_BEFORE_PATCHES:], (old, old), (new, new))
    return torch.cat([table[:ROWS_BEFORE_PATCHES], patches])


def is_shared(keys: Mapping[str, Tensor]) -> bool:
    """Whether these weights are of a model whose attention is shared by the modalities."""
    return any(f".self_attn.q_proj.{SHARED}." in key for key in keys)


def depth_of(keys: Mapping[str, Tensor]) -> int:
    """Number of encoder layers that these keys speak of."""
    numbers = [key.split(".")[2] for key in keys if key.startswith(_LAYERS)]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _share_attention(
    source: dict[str, Tensor],
    target: Mapping[str, Tensor],
    path: str | Path,
    init_shared_from: SharedSource | None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Decoupled weights as shared ones where the model asks for it and the caller chose which; else unchanged.

    Also returns the keys of the expert that was not chosen.
    """
    if init_shared_from not in (None, *get_args(SharedSource)):
        raise CheckpointError(f"init_shared_from {init_shared_from!r} must be A, B or mean")
    if not is_shared(target) or is_shared(source) or init_shared_from is None or not depth_of(source):
        return source, []
    shared = [key for key in target if SHARED in key.split(".") and backbone_group(key) == SHARED_WEIGHTS]
    chosen = (VISION, TEXT) if init_shared_from == "mean" else (init_shared_from,)
    result, not_chosen = dict(source), []
    for key in shared:
        present = []
        for expert in (VISION, TEXT):
            name = key.replace(f".{SHARED}.", f".{expert}.")
            tensor = result.pop(name, None)
            if tensor is not None and expert in chosen:
                present.append(tensor)
            elif tensor is not None:
                not_chosen.append(name)
        if len(present) == len(chosen) and len({tensor.shape for tensor in present}) == 1:
            mean = torch.stack([tensor.float() for tensor in present]).mean(dim=0)
            result[key] = mean.to(present[0].dtype)
        elif not key.startswith(_OPTIONAL):
            raise CheckpointError(
                f"checkpoint {path} lacks what init_shared_from={init_shared_from} needs for {key}; choose an expert "
                "that the file holds"
            )
    return result, not_chosen


def _common_groups(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> set[str]:
    in_file, in_model = ({backbone_group(key) for key in keys} for keys in (source, target))
    common = (in_file & in_model) - {ADAPTERS}
    # An expert cannot do without the attention that it shares.
    return common | ({SHARED_WEIGHTS} & (in_file | in_model)) if common else common


def _names(backbone: Mapping[str, Tensor], heads: Mapping[str, Tensor] | None = None) -> str:
    return ", ".join(grouped(backbone, heads or ())) or "nothing"


def _difference(
    path: str | Path, key: str, source: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> CheckpointError:
    """The error for the first key that differs."""

    def describe(tensors: Mapping[str, Tensor]) -> str:
        if key not in tensors:
            return "absent"
        tensor = tensors[key]
        kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
        return f"{tuple(tensor.shape)}{kind}"

    depths = depth_of(source), depth_of(target)
    remedy = "choose the backbone that the file was made for (`mca checkpoint inspect` tells which)"
    if is_shared(target) and not is_shared(source):
        remedy = "its attention is decoupled, the model's shared: choose the weights with init_shared_from=A, B or mean"
    elif is_shared(source) and not is_shared(target):
        remedy = "its attention is shared, the model's decoupled: create the backbone with attention='shared'"
    elif depths[0] != depths[1]:
        remedy = f"it has {depths[0]} encoder layers, the model {depths[1]}: {remedy}"
    return CheckpointError(
        f"checkpoint {path} does not fit the model: {key} is {describe(source)} in the file and {describe(target)} in "
        f"the model; {remedy}"
    )
