"""The clips part of a training recipe and its defaults."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class ClipsRecipe(BaseModel):
    """Training of the temporal head on a folder of defect videos in ARMBench's layout.

    Frames are cut and resized as published, then reduced to ``frame_size``; ``frames`` of them, spread evenly, make a
    clip in training. ``detail_dim`` is that of the defect head: a run that starts from a model with such a head
    (``init_from``) judges frames as that judges crops, and with ``frozen_frames`` goes on doing so. A pass has a
    defective clip ``repeat_defects`` times. Of the training sessions, a share ``validation_fraction`` is kept for
    watching the training and for the threshold of the evaluation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path
    frames: int = Field(8, ge=2, le=256)
    frame_size: PositiveInt = 160
    hidden_dim: PositiveInt = 16
    detail_dim: int = Field(0, ge=0, le=128, multiple_of=8)
    frozen_frames: bool = False
    dropout: float = Field(0.1, ge=0, lt=1)
    validation_fraction: float = Field(0.2, gt=0, lt=1)
    repeat_defects: PositiveInt = 1
    batch_size: PositiveInt = 8
    workers: int = Field(1, ge=0, le=64)
    every: PositiveInt = 1
    weight: PositiveFloat = 1.0
