"""BEiT-3, the one backbone under every task."""

from mca_perception.backbone.beit3 import BEiT3, normalise
from mca_perception.backbone.checkpoint import CheckpointError, LoadReport, load_checkpoint
from mca_perception.backbone.config import CONFIGS, BackboneConfig
from mca_perception.backbone.registry import create_backbone, list_backbones

__all__ = [
    "CONFIGS",
    "BEiT3",
    "BackboneConfig",
    "CheckpointError",
    "LoadReport",
    "create_backbone",
    "list_backbones",
    "load_checkpoint",
    "normalise",
]
