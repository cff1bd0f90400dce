"""The shared backbone under every task: the Multiway Transformer of BEiT-3, or one of its replacements."""

from mca_perception.backbone.beit3 import BEiT3
from mca_perception.backbone.checkpoints import LoadReport, load_checkpoint, read_heads
from mca_perception.backbone.config import CONFIGS, BackboneConfig
from mca_perception.backbone.protocol import Backbone, NoBackbone, Normalisation, normalise
from mca_perception.backbone.registry import create_backbone, create_beit3, list_backbones
from mca_perception.errors import BackboneError, CheckpointError

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
