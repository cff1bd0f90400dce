"""The shared backbone under every task: the Multiway Transformer of BEiT-3, or one of its replacements.

Names are imported when they are used: the tokenizer beside the networks needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mca_perception.errors import BackboneError, CheckpointError

if TYPE_CHECKING:
    from mca_perception.backbone.beit3 import BEiT3
    from mca_perception.backbone.checkpoints import LoadReport, load_checkpoint, read_heads
    from mca_perception.backbone.config import CONFIGS, BackboneConfig
    from mca_perception.backbone.protocol import Backbone, NoBackbone, Normalisation, normalise
    from mca_perception.backbone.registry import create_backbone, create_beit3, list_backbones

__all__ = [
    "CONFIGS",
    "BEiT3",
    "Backbone",
    "BackboneConfig",
    "BackboneError",
    "CheckpointError",
    "LoadReport",
    "NoBackbone",
    "Normalisation",
    "create_backbone",
    "create_beit3",
    "list_backbones",
    "load_checkpoint",
    "normalise",
    "read_heads",
]

_HOMES = {
    "beit3": ("BEiT3",),
    "checkpoints": ("LoadReport", "load_checkpoint", "read_heads"),
    "config": ("CONFIGS", "BackboneConfig"),
    "protocol": ("Backbone", "NoBackbone", "Normalisation", "normalise"),
    "registry": ("create_backbone", "create_beit3", "list_backbones"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
