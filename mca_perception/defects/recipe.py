"""The defects part of a training recipe and its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class DefectsRecipe(BaseModel):
    """Training of the defect head on a folder of defect images in ARMBench's layout.

    ``crop_size``, ``margin`` and ``masked`` decide how the picked object is cut out; with those of the identification
    head one backbone pass over the crops serves both. ``views`` is the largest number of images of a pick in a batch,
    ``recolour`` the share of them whose colours are changed at random in training, so that shapes count; ``turned``
    whether by any angle or by right angles alone; ``repeat_defects`` how often a pass has a defective pick; ``clues``
    the weight of the loss that asks every patch for seams between items and for openings, where the data tell of them.
    ``class_balance`` is the beta of class-balanced weights (0 weighs all images alike), ``focal_gamma`` 0 is plain
    cross-entropy. Of the training sessions, a share ``calibration_fraction`` is kept for thresholds alone, and a share
    ``validation_fraction`` of the others for watching the training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path
    split: Literal["official", "session_disjoint"] = "official"
    calibration_fraction: float = Field(0.25, gt=0, lt=1)
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    crop_size: PositiveInt = 112
    margin: float = Field(0.1, ge=0, le=1)
    masked: bool = True
    hidden_dim: PositiveInt = 256
    queries: PositiveInt = 4
    blocks: int = Field(0, ge=0, le=8)
    token_dim: int = Field(96, gt=0, multiple_of=4)
    detail_dim: int = Field(0, ge=0, le=128, multiple_of=8)
    dropout: float = Field(0.1, ge=0, lt=1)
    views: int = Field(4, ge=1, le=32)
    recolour: float = Field(0.0, ge=0, le=1)
    turned: bool = True
    repeat_defects: PositiveInt = 1
    clues: float = Field(0.0, ge=0)
    class_balance: float = Field(0.999, ge=0, lt=1)
    focal_gamma: float = Field(0.0, ge=0, le=10)
    batch_size: PositiveInt = 16
    workers: int = Field(1, ge=0, le=64)
    every: PositiveInt = 1
    weight: PositiveFloat = 1.0
    fpr: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    confidence: float = Field(0.95, gt=0, lt=1)
