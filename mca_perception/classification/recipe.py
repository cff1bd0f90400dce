"""The labelled-image part of a training recipe and its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

MethodName = Literal["cross_entropy", "supcon", "lacvit", "clce", "ce_supcon", "scl_rhe", "simclr"]
# Published temperatures: LaCViT 0.1, CLCE 0.5; SCL-RHE gives none, 0.1 is this project's choice.
TEMPERATURES = {
    "supcon": 0.1,
    "lacvit": 0.1,
    "scl_rhe": 0.1,
    "simclr": 0.1,
    "clce": 0.5,
    "ce_supcon": 0.5,
    "cross_entropy": 1.0,
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ViewAugmentation(_Section):
    """Random changes that make a view of an image.

    ``smallest_crop``: least share of the image's area that is kept; ``flip``: probability of a mirror image, 0 where
    print matters; ``rotation``: degrees either way; ``colour``: strength of changes of brightness, contrast and
    saturation; ``auto_augment``: an AutoAugment policy that is applied last, by the data that it was found on. Its
    colours and rotations come on top of the others: set ``colour`` and ``rotation`` to 0 to have the policy alone.
    """

    smallest_crop: float = Field(default=0.4, gt=0, le=1)
    flip: float = Field(default=0.5, ge=0, le=1)
    rotation: float = Field(default=15.0, ge=0, le=180)
    colour: float = Field(default=0.3, ge=0, lt=1)
    auto_augment: Literal["imagenet", "cifar10", "svhn"] | None = None


class MethodRecipe(_Section):
    """A training method and its settings (specification of the contrastive methods, sections 2 to 4).

    ``cross_entropy``, ``clce`` and ``ce_supcon`` train a classifier from the first step to the last; ``ce_supcon`` is
    ``clce`` with SupCon's outer form, its published comparator (section 3.5). The others contrast projected
    embeddings for ``contrastive_batches`` batches and train the classifier afterwards: ``lacvit`` with all weights,
    ``supcon``, ``simclr`` and ``scl_rhe`` on the frozen encoder.

    ``temperature`` is that of the method when not given. ``contrast_weight`` is lambda of ``clce`` and ``ce_supcon``;
    without ``hard_negatives`` the negatives of ``clce`` weigh the same. ``label_error`` is the rate that ``scl_rhe``
    expects; ``beta_positive`` and ``beta_negative`` are its tilts. ``normalise_head_input`` gives the classifier the
    direction of the representation times a learned scale.
    """

    name: MethodName
    contrastive_batches: int = Field(default=0, ge=0)
    temperature: PositiveFloat | None = None
    contrast_weight: float = Field(default=0.9, ge=0, le=1)
    hard_negatives: bool = True
    label_error: float = Field(default=0.033, ge=0, lt=0.5)
    beta_positive: float = Field(default=1.0, ge=0, le=1)
    beta_negative: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    normalise_head_input: bool = False
    projection_dim: PositiveInt = 128

    @property
    def two_stages(self) -> bool:
        """Whether a contrastive stage comes before the classifier's."""
        return self.name not in ("cross_entropy", "clce", "ce_supcon")

    @property
    def freezes_encoder(self) -> bool:
        """Whether the second stage trains the classifier alone."""
        return self.name in ("supcon", "simclr", "scl_rhe")

    @property
    def loss_temperature(self) -> float:
        """The given temperature, or the method's."""
        return self.temperature or TEMPERATURES[self.name]

    @model_validator(mode="after")
    def _consistent(self) -> MethodRecipe:
        if self.contrastive_batches and not self.two_stages:
            raise ValueError(f"{self.name} has one stage: leave contrastive_batches out")
        return self


class ClassificationRecipe(_Section):
    """Training on labelled images: a folder with one folder of images per class, or the Grocery Store data.

    Every image gives two views. ``images_per_class`` makes a batch of ``batch_size`` images out of
    ``batch_size / images_per_class`` classes; by default images are drawn evenly. ``chunk_size`` encodes so many views
    at a time and computes them again for their gradients: the batch, and with it the number of contrasts, is then
    bounded by the embeddings, not by the activations.

    Held out for validation: ``validation_split`` (a folder beside the training folder, or a list of the Grocery Store
    data), else a random ``validation_fraction`` of every class. ``train_split`` names the training folder, or list; an
    image folder without such folders is used as it is.
    """

    data: Path
    method: MethodRecipe
    train_split: str = "train"
    validation_split: str | None = None
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    image_size: PositiveInt = 96
    augmentation: ViewAugmentation = ViewAugmentation()
    batch_size: int = Field(default=64, ge=2)
    images_per_class: int | None = Field(default=None, ge=2)
    chunk_size: PositiveInt | None = None
    workers: int = Field(default=1, ge=0, le=64)
    every: PositiveInt = 1
    weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _whole_classes(self) -> ClassificationRecipe:
        if self.images_per_class is not None and self.batch_size % self.images_per_class:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of images_per_class {self.images_per_class}"
            )
        return self
