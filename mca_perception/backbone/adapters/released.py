"""Import MultiWay-Adapters trained with the code released beside their publication.

Its key names say ``text`` where they mean images and the other way round, its Alignment Enhancer is shared by both
modalities and as wide as the host's feed-forward network, and its scale is not stored (specification of the adapter,
section 9.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from mca_perception.backbone.adapters.config import MultiWayConfig
from mca_perception.backbone.adapters.inject import DEFAULT
from mca_perception.backbone.adapters.names import PREFIX
from mca_perception.backbone.adapters.storage import add_adapter
from mca_perception.backbone.beit3 import BEiT3
from mca_perception.backbone.blocks import EXPERT_OF, SHARED, TEXT, VISION
from mca_perception.backbone.checkpoints import read_state_dict
from mca_perception.errors import AdapterError

_KEY = re.compile(
    r"(?:^|\.)encoder\.layers\.(?P<layer>\d+)\.(?P<module>adaptmlp_text|adaptmlp_vision|enhancemlp)\.(?P<rest>.+)$"
)
_EXTRACTOR_OF = {"adaptmlp_text": VISION, "adaptmlp_vision": TEXT}
_EXTRACTOR_PARTS = {"down_proj": "down", "up_proj": "up", "adapter_layer_norm_before": "norm"}


def import_released(
    model: nn.Module,
    path: str | Path,
    name: str = DEFAULT,
    *,
    alpha: float,
    layer_norm_option: Literal["none", "in"] = "none",
    dropout: float = 0.1,
) -> MultiWayConfig:
    """Add an adapter out of a checkpoint of the released code to a BEiT-3 backbone, frozen and activated as on load.

    The backbone's own weights in the same file are not touched: load them with ``load_checkpoint``. Modules of a
    modality that the backbone does not read are left out.

    Args:
        model: BEiT-3 with the weights that the adapter was trained on.
        path: ``.pth`` or ``.safetensors``.
        name: to give the adapter.
        alpha: the scale it was trained with (``ffn_adapter_scalar``: 0.1 by default there, 0.6 in the published
            command), which the file does not hold. Ignored where the file holds learned scales.
        layer_norm_option: ``ffn_adapter_layernorm_option`` of the training; ``out`` has no counterpart here.
        dropout: on the extractor's hidden layer when training goes on.

    Returns:
        The settings found.

    Raises:
        CheckpointError: the file cannot be read.
        AdapterError: it holds no such adapter, or one that does not fit.
    """
    if not isinstance(model, BEiT3):
        raise AdapterError(f"released adapters fit BEiT-3 backbones, not {type(model).__name__}")
    experts = tuple(EXPERT_OF[modality] for modality in model.modalities)
    tensors = _translate(read_state_dict(path), experts)
    if not tensors:
        raise AdapterError(
            f"{path} holds no adapter of the released code (keys with adaptmlp_* or enhancemlp)"
        )
    has_norm = any(".norm." in key for key in tensors)
    if has_norm != (layer_norm_option == "in"):
        found = "holds" if has_norm else "does not hold"
        raise AdapterError(
            f"{path} {found} LayerNorms of the adapter, which contradicts layer_norm_option={layer_norm_option!r}: "
            "give the option of the training; 'out' cannot be imported"
        )
    config = MultiWayConfig(
        bottleneck=_rows(tensors, ".down.weight"),
        enhancer_dim=_rows(tensors, ".fc1.weight"),
        alpha=alpha,
        learnable_alpha=any(key.endswith(".alpha") for key in tensors),
        nke_norm="own" if has_norm else "none",
        ae_sharing="shared",
        dropout=dropout,
        blocks=tuple(sorted({int(key.split(".")[3]) for key in tensors})),
    )
    add_adapter(model, config, tensors, name)
    return config


def _translate(released: Mapping[str, Tensor], experts: tuple[str, ...]) -> dict[str, Tensor]:
    tensors = {}
    for key, value in released.items():
        match = _KEY.search(key)
        if match is None:
            continue
        layer = f"{PREFIX}encoder.layers.{match['layer']}"
        if match["module"] == "enhancemlp":
            tensors[f"{layer}.ae.{SHARED}.{match['rest']}"] = value
        elif (expert := _EXTRACTOR_OF[match["module"]]) in experts:
            part, _, kind = match["rest"].partition(".")
            if part == "scale":
                tensors[f"{layer}.nke.{expert}.alpha"] = value.reshape(())
            else:
                tensors[f"{layer}.nke.{expert}.{_EXTRACTOR_PARTS.get(part, part)}.{kind}"] = value
    return tensors


def _rows(tensors: Mapping[str, Tensor], suffix: str) -> int:
    """Hidden width of the modules whose first weight ends in ``suffix``; 0 if there is none."""
    return next((value.shape[0] for key, value in tensors.items() if key.endswith(suffix)), 0)
