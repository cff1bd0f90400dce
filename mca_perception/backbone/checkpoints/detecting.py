"""Tell what a checkpoint is without a model at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mca_perception.backbone.blocks import EXPERT_OF, FUSED, TEXT
from mca_perception.backbone.checkpoints.fitting import ROWS_BEFORE_PATCHES, depth_of, is_shared
from mca_perception.backbone.checkpoints.layouts import (
    POSITION_KEY,
    Contents,
    Layout,
    grouped,
    head_task,
    sort,
)
from mca_perception.backbone.checkpoints.loading import non_finite
from mca_perception.backbone.checkpoints.reading import read_metadata, read_state_dict
from mca_perception.backbone.config import CONFIGS, restrict
from mca_perception.errors import CheckpointError

_BLOCK = "encoder.layers.0."


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint holds. Fields of the architecture are None where the file does not tell.

    Attributes:
        layout: whose file it is; see :class:`~mca_perception.backbone.checkpoints.layouts.Contents`.
        tasks: whose heads it holds.
        backbone: name for :func:`~mca_perception.backbone.create_backbone`, None when no known model has these sizes.
        overrides: fields of the configuration in which the file differs from the model of that name.
        modalities: experts in the file.
        img_size: side of the square image in pixels, from the position table; None when that is not square.
        num_heads: of the model named ``backbone``; weights do not tell it.
        dtype: of the backbone's tensors, the most frequent first.
        tensors: number of tensors by group.
        parameters: number of values by group.
        non_finite: keys with infinite values or NaN.
        metadata: strings in the header of a safetensors file.
    """

    layout: Layout
    tasks: tuple[str, ...]
    backbone: str | None
    overrides: dict[str, Any]
    modalities: tuple[str, ...]
    patch_size: int | None
    embed_dim: int
    depth: int
    num_heads: int | None
    ffn_dim: int
    attention: str
    img_size: int | None
    dtype: str
    tensors: dict[str, int]
    parameters: dict[str, int]
    non_finite: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


def detect(path: str | Path) -> CheckpointInfo:
    """Tell layout, task and architecture of a checkpoint.

    Raises:
        CheckpointError: the file cannot be read as tensors only, or holds no Multiway Transformer.
    """
    return describe(sort(read_state_dict(path)), path, read_metadata(path))


def describe(contents: Contents, path: str | Path, metadata: dict[str, str] | None = None) -> CheckpointInfo:
    """The same for tensors read already.

    Raises:
        CheckpointError: they hold no Multiway Transformer.
    """
    tensors = contents.backbone
    modalities = tuple(
        name for name, expert in EXPERT_OF.items() if _is_matrix(tensors, f"{_BLOCK}ffn.{expert}.fc1.weight")
    )
    if not modalities:
        raise CheckpointError(
            f"checkpoint {path} holds no Multiway Transformer (first key: "
            f"{next(iter({**tensors, **contents.heads}), 'none')[:80]}); give a BEiT-3 checkpoint, timm's beit3_*, or "
            "weights of this repository"
        )
    fc1 = tensors[f"{_BLOCK}ffn.{EXPERT_OF[modalities[0]]}.fc1.weight"]
    projection = tensors.get("vision_embed.proj.weight")
    patch_size = projection.shape[-1] if projection is not None and projection.ndim else None
    sizes = {"embed_dim": fc1.shape[1], "depth": depth_of(tensors), "ffn_dim": fc1.shape[0]}
    details = _details(tensors, modalities)
    name, overrides = _match({"patch_size": patch_size, **sizes}, details, modalities)
    groups = grouped(tensors, contents.heads)
    everything = {**tensors, **contents.heads}
    tasks = {head_task(key, contents.heads): None for key in contents.heads}
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return CheckpointInfo(
        layout=contents.layout,
        tasks=tuple(task for task in tasks if task),
        backbone=name,
        overrides=overrides,
        modalities=modalities,
        patch_size=patch_size,
        num_heads=CONFIGS[name].num_heads if name else None,
        attention=details.settings["attention"],
        img_size=_img_size(tensors, patch_size),
        dtype=", ".join(kind for kind, _ in dtypes.most_common()),
        tensors={group: len(keys) for group, keys in groups.items()},
        parameters={group: sum(everything[key].numel() for key in keys) for group, keys in groups.items()},
        non_finite=non_finite(everything),
        metadata=metadata or {},
        **sizes,
    )


class _Details(NamedTuple):
    """What tells models of equal sizes apart: their kind of block, and settings that an override can follow."""

    sub_layernorm: bool
    layer_scale: bool
    settings: dict[str, Any]


def _details(tensors: Mapping[str, Tensor], modalities: tuple[str, ...]) -> _Details:
    first = EXPERT_OF[modalities[0]]
    settings: dict[str, Any] = {
        "attention": "shared" if is_shared(tensors) else "decoupled",
        "vl_experts": sum(key.endswith(f".ffn.{FUSED}.fc1.weight") for key in tensors),
        "normalize_output": any(key.startswith("encoder.layer_norm.") for key in tensors),
    }
    tables = {
        "vocab_size": "text_embed.weight",
        "max_text_positions": f"encoder.embed_positions.{TEXT}.weight",
    }
    settings |= {name: tensors[key].shape[0] for name, key in tables.items() if _is_matrix(tensors, key)}
    return _Details(
        sub_layernorm=f"{_BLOCK}ffn.{first}.ffn_layernorm.weight" in tensors,
        layer_scale=f"{_BLOCK}attention_scale.gamma" in tensors,
        settings=settings,
    )


def _match(
    sizes: Mapping[str, Any], details: _Details, modalities: tuple[str, ...]
) -> tuple[str | None, dict[str, Any]]:
    """The known model with these sizes that needs the fewest overrides, and them."""
    candidates = []
    for name, config in CONFIGS.items():
        restricted = restrict(config, modalities)
        if (
            all(value in (None, getattr(restricted, size)) for size, value in sizes.items())
            and restricted.sub_layernorm == details.sub_layernorm
            and (restricted.layer_scale is not None) == details.layer_scale
        ):
            overrides = {
                key: value for key, value in details.settings.items() if value != getattr(restricted, key)
            }
            candidates.append((name, overrides))
    return min(candidates, key=lambda candidate: len(candidate[1]), default=(None, {}))


def _img_size(tensors: Mapping[str, Tensor], patch_size: int | None) -> int | None:
    if patch_size is None or not _is_matrix(tensors, POSITION_KEY):
        return None
    patches = max(tensors[POSITION_KEY].shape[0] - ROWS_BEFORE_PATCHES, 0)
    side = isqrt(patches)
    return side * patch_size if side and side**2 == patches else None


def _is_matrix(tensors: Mapping[str, Tensor], key: str) -> bool:
    return key in tensors and tensors[key].ndim == 2
