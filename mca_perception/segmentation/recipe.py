"""The segmentation part of a training recipe and its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator


class Augmentation(BaseModel):
    """Random changes of a training scene.

    Attributes:
        scale: range of the zoom relative to "whole image fits"; 0.1 to 2 is large-scale jitter ("Simple Copy-Paste",
            section 3).
        rotation: largest in-plane rotation in degrees, besides the 180 degree turns.
        brightness: largest relative change of exposure.
        copy_paste: probability that objects of another scene are pasted into one.
        most_pasted: largest number of objects pasted at once.
        pasted_labels: classes that may be pasted: not the tote, which would cover the scene.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: tuple[PositiveFloat, PositiveFloat] = (0.85, 1.3)
    rotation: float = Field(default=8.0, ge=0, le=180)
    brightness: float = Field(default=0.3, ge=0, lt=1)
    copy_paste: float = Field(default=0.0, ge=0, le=1)
    most_pasted: PositiveInt = 10
    pasted_labels: tuple[str, ...] = ("Object",)

    @field_validator("scale")
    @classmethod
    def _rising(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError("the smaller zoom comes first")
        return scale


class SegmentationRecipe(BaseModel):
    """Training of a segmentation head on an ARMBench-format folder.

    ``head`` chooses between the edge head, whose sizes are ``hidden_dim``, ``pyramid_dim``,
    ``mask_dim`` and ``refinement_dim``, and the
    cascade, whose sizes ``cascade`` names as a whole.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path
    subset: str = "mix-object-tote"
    train_split: str = "train"
    validation_split: str = "val"
    labels: tuple[str, ...] = ("Object",)
    head: Literal["edge", "cascade"] = "edge"
    input_size: tuple[PositiveInt, PositiveInt] = (256, 320)
    batch_size: PositiveInt = 16
    workers: int = Field(1, ge=0, le=64)
    hidden_dim: PositiveInt = 192
    pyramid_dim: PositiveInt = 48
    mask_dim: PositiveInt = 32
    refinement_dim: PositiveInt = 128
    cascade: Literal["nano", "base"] = "nano"
    max_objects: PositiveInt = 100
    every: PositiveInt = 1
    weight: PositiveFloat = 1.0
    validation_images: PositiveInt = 200
    augmentation: Augmentation = Augmentation()
