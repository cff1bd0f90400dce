"""Whose file it is, told by its keys, and every layout's keys turned into those of our backbone.

Keys and heads of the official files: specification of the framework, section 5.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from mca_perception.backbone.beit3 import UNUSED_POSITIONS
from mca_perception.backbone.blocks import FUSED, SHARED, TEXT, VISION

Layout = Literal["official", "timm", "mca", "bare"]

POSITION_KEY = f"encoder.embed_positions.{VISION}.weight"

VISION_EXPERT, TEXT_EXPERT, FUSED_EXPERT = "vision expert", "text expert", "fused expert"
SHARED_WEIGHTS, ADAPTERS, OTHER = "shared weights", "adapters", "other"
_BACKBONE_GROUPS = (VISION_EXPERT, TEXT_EXPERT, FUSED_EXPERT, SHARED_WEIGHTS, ADAPTERS, OTHER)

_PREFIXES: dict[str, Layout] = {"beit3.": "official", "backbone.": "mca"}
_BACKBONE_STEMS = ("encoder.", "vision_embed.", "text_embed.")

# Adapters of this repository (LoRA included), and of the published MultiWay-Adapter code.
_ADAPTER_MARKS = (".adapters.", ".lora_", ".adaptmlp_", ".enhancemlp.")

_TIMM_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_TIMM_BLOCK_NAMES = {
    "norm1": f"self_attn_layer_norm.{VISION}",
    "attn.norm": f"self_attn.inner_attn_ln.{VISION}",
    "attn.proj": f"self_attn.out_proj.{VISION}",
    "norm2": f"final_layer_norm.{VISION}",
    "mlp.fc1": f"ffn.{VISION}.fc1",
    "mlp.norm": f"ffn.{VISION}.ffn_layernorm",
    "mlp.fc2": f"ffn.{VISION}.fc2",
}
_TIMM_NAMES = {
    "cls_token": "vision_embed.cls_token",
    "patch_embed.proj.weight": "vision_embed.proj.weight",
    "patch_embed.proj.bias": "vision_embed.proj.bias",
    "norm.weight": f"encoder.layer_norm.{VISION}.weight",
    "norm.bias": f"encoder.layer_norm.{VISION}.bias",
}

_HEAD_STEMS = {
    "vision_head": "retrieval",
    "language_head": "retrieval",
    "logit_scale": "retrieval",
    "mim_head": "pre-training",
    "fc_norm": "classification",
    "pooler": "VQA",
}
_HEAD_PARTS = {
    **dict.fromkeys(("weight", "bias"), "classification"),
    **dict.fromkeys(("0", "1", "3"), "VQA"),
    **dict.fromkeys(("norm1", "dense1", "norm2", "dense2"), "NLVR2"),
}


@dataclass(frozen=True)
class Contents:
    """The tensors of a file, sorted.

    Attributes:
        layout: ``official`` (keys start with ``beit3.``), ``timm``, ``mca`` (``backbone.``: runs, bundles and converted
            files of this repository) or ``bare`` (a backbone's state dict without prefix).
        backbone: under the keys of :class:`~mca_perception.backbone.beit3.BEiT3`.
        heads: everything else, under the file's keys.
    """

    layout: Layout
    backbone: dict[str, Tensor]
    heads: dict[str, Tensor]


def sort(tensors: dict[str, Tensor]) -> Contents:
    """Tell the layout and separate the backbone from the heads."""
    for prefix, layout in _PREFIXES.items():
        if any(key.startswith(prefix) for key in tensors):
            return Contents(
                layout,
                {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)},
                {key: value for key, value in tensors.items() if not key.startswith(prefix)},
            )
    if "blocks.0.attn.qkv.weight" in tensors:
        return _sort_timm(tensors)
    return Contents(
        "bare",
        {key: value for key, value in tensors.items() if key.startswith(_BACKBONE_STEMS)},
        {key: value for key, value in tensors.items() if not key.startswith(_BACKBONE_STEMS)},
    )


def _sort_timm(tensors: dict[str, Tensor]) -> Contents:
    """What timm calls ``beit3_*`` is the vision expert with fused query, key and value and no unused position rows."""
    backbone: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for key, value in tensors.items():
        block = _TIMM_BLOCK.fullmatch(key)
        if key in _TIMM_NAMES:
            backbone[_TIMM_NAMES[key]] = value
        elif key == "pos_embed" and value.ndim == 3:
            backbone[POSITION_KEY] = F.pad(value.flatten(0, 1), (0, 0, UNUSED_POSITIONS, 0))
        elif block and block[2] in _TIMM_BLOCK_NAMES:
            backbone[f"encoder.layers.{block[1]}.{_TIMM_BLOCK_NAMES[block[2]]}.{block[3]}"] = value
        elif block and block[2] == "attn.qkv" and value.ndim:
            for name, part in zip("qkv", value.chunk(3), strict=False):
                backbone[f"encoder.layers.{block[1]}.self_attn.{name}_proj.{VISION}.{block[3]}"] = part
        else:
            heads[key] = value
    return Contents("timm", backbone, heads)


def backbone_group(key: str) -> str:
    """The part of a Multiway Transformer that a key of it belongs to."""
    if any(mark in key for mark in _ADAPTER_MARKS):
        return ADAPTERS
    parts = key.split(".")
    if parts[0] == "text_embed" or TEXT in parts:
        return TEXT_EXPERT
    if parts[0] == "vision_embed" or VISION in parts:
        return VISION_EXPERT
    if FUSED in parts:
        return FUSED_EXPERT
    if SHARED in parts or parts[-1] == "gamma":
        return SHARED_WEIGHTS
    return OTHER


def head_task(key: str, heads: Iterable[str]) -> str | None:
    """The task whose head a key outside the backbone belongs to, given all such keys; None when it is no head's.

    ``mlm_head`` serves captioning, or with a ``mim_head`` beside it pre-training. A retrieval head is in the
    fine-tuned retrieval files and in the ``-itc`` files alike.
    """
    stem, _, rest = key.partition(".")
    part, _, deeper = rest.partition(".")
    if stem == "heads" and deeper:
        return part
    if stem == "mlm_head":
        return "pre-training" if any(other.startswith("mim_head.") for other in heads) else "captioning"
    return _HEAD_PARTS.get(part) if stem == "head" else _HEAD_STEMS.get(stem)


def grouped(backbone: Iterable[str], heads: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
    """Keys by group: experts, shared weights, adapters, heads by task (``retrieval head``), other."""
    heads = list(heads)
    groups: dict[str, list[str]] = {name: [] for name in _BACKBONE_GROUPS}
    for key in backbone:
        groups[backbone_group(key)].append(key)
    for key in heads:
        task = head_task(key, heads)
        groups.setdefault(f"{task} head" if task else OTHER, []).append(key)
    groups[OTHER] = groups.pop(OTHER)  # to the end
    return {name: tuple(keys) for name, keys in groups.items() if keys}
