"""The identification part of a training recipe and its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

LossName = Literal["info_nce", "sigmoid", "supcon", "clce", "scl_rhe"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CropAugmentation(_Section):
    """Random changes of a crop: turn in degrees either way, range of the zoom, shift as a share of the side."""

    rotation: float = Field(default=180.0, ge=0, le=180)
    zoom: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.1)
    shift: float = Field(default=0.0, ge=0, le=0.5)


class IdentificationRecipe(_Section):
    """Training of the identification head on a folder of picks in ARMBench's layout, or on the Grocery Store data.

    Losses: ``info_nce`` and ``sigmoid`` contrast queries with references; ``supcon``, ``clce`` and ``scl_rhe`` contrast
    all crops by their product, at ``loss_temperature`` (that of the method when not given). ``clce`` mixes in the
    cross-entropy of a classifier over the training products, with the weight ``1 - contrast_weight``; at 0 that is all
    there is. ``label_error`` is the rate that ``scl_rhe`` expects.

    With several ``views``, a network of two layers joins the embeddings of a pick's views (``fusion_hidden`` wide, four
    times the backbone by default, as published); in training each view is left out with ``view_dropout``. With
    ``trainable: fusion`` it alone is trained. ``reference_fusion`` joins ``references`` images of a product to one
    embedding. ``poolers: separate`` gives references a head of their own.

    ``chunk_size`` encodes so many crops at a time and computes them again for their gradients: the batch, and with it
    the number of negatives, is then bounded by the embeddings, not by the activations.

    ``first_reference`` is the probability that a pair takes the first reference image of its product, which for the
    Grocery Store data is the iconic one; by default all are alike.
    """

    data: Path
    train_split: str = "trainset"
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    validation_references: PositiveInt = 2
    crop_size: PositiveInt = 112
    embedding_dim: PositiveInt = 128
    margin: float = Field(0.1, ge=0, le=1)
    augmentation: CropAugmentation = CropAugmentation()
    loss: LossName = "info_nce"
    loss_temperature: PositiveFloat | None = None
    contrast_weight: float = Field(0.9, ge=0, le=1)
    label_error: float = Field(0.033, ge=0, lt=0.5)
    views: int = Field(1, ge=1, le=4)
    view_dropout: float = Field(0.3, ge=0, lt=1)
    fusion_hidden: PositiveInt | None = None
    poolers: Literal["shared", "separate"] = "shared"
    references: int = Field(1, ge=1, le=16)
    first_reference: float | None = Field(None, ge=0, le=1)
    reference_fusion: Literal["mean", "attention"] | None = None
    trainable: Literal["all", "fusion"] = "all"
    batch_size: PositiveInt = 64
    chunk_size: PositiveInt | None = None
    workers: int = Field(1, ge=0, le=64)
    every: PositiveInt = 1
    weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _consistent(self) -> IdentificationRecipe:
        if self.trainable == "fusion" and self.views == 1:
            raise ValueError("trainable: fusion needs views of 2 to 4, which the network joins")
        if (self.references > 1) != (self.reference_fusion is not None):
            raise ValueError("references above 1 and reference_fusion (mean or attention) go together")
        if self.loss_temperature is not None and self.loss in ("info_nce", "sigmoid"):
            raise ValueError(f"the loss {self.loss} learns its temperature: leave loss_temperature out")
        return self
