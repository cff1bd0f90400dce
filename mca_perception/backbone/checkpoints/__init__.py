"""Weights files of the backbone: read them as tensors only, tell what they are, load and convert them."""

from mca_perception.backbone.checkpoints.converting import convert
from mca_perception.backbone.checkpoints.detecting import CheckpointInfo, detect
from mca_perception.backbone.checkpoints.fitting import SharedSource
from mca_perception.backbone.checkpoints.loading import LoadReport, load_checkpoint, read_heads
from mca_perception.backbone.checkpoints.reading import read_state_dict
from mca_perception.errors import CheckpointError

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "LoadReport",
    "SharedSource",
    "convert",
    "detect",
    "load_checkpoint",
    "read_heads",
    "read_state_dict",
]
