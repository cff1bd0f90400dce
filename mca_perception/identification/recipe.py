"""The identification part of a training recipe and its defaults."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class IdentificationRecipe(BaseModel):
    """Training of the identification head on an ARMBench-format folder of picks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path
    train_split: str = "trainset"
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    crop_size: PositiveInt = 112
    embedding_dim: PositiveInt = 128
    margin: float = Field(0.1, ge=0, le=1)
    batch_size: PositiveInt = 64
    workers: int = Field(1, ge=0, le=64)
    every: PositiveInt = 1
    weight: PositiveFloat = 1.0
