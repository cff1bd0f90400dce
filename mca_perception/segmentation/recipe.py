"""The segmentation part of a training recipe and its defaults."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class SegmentationRecipe(BaseModel):
    """Training of the edge segmentation head on an ARMBench-format folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path
    subset: str = "mix-object-tote"
    train_split: str = "train"
    validation_split: str = "val"
    labels: tuple[str, ...] = ("Object",)
    input_size: tuple[PositiveInt, PositiveInt] = (256, 320)
    batch_size: PositiveInt = 16
    workers: int = Field(1, ge=0, le=64)
    hidden_dim: PositiveInt = 192
    pyramid_dim: PositiveInt = 48
    mask_dim: PositiveInt = 32
    max_objects: PositiveInt = 100
    every: PositiveInt = 1
    weight: PositiveFloat = 1.0
    validation_images: PositiveInt = 200
