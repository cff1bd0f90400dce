"""The pre-training part of a training recipe and its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Part = Literal["all", "vision", "text"]


class Objectives(BaseModel):
    """Factor of every objective's loss; 0 leaves an objective out.

    ``itc``: image-text contrastive; ``mlm``: masked language modelling on texts; ``mim``: masked image modelling on
    images; ``mvlm``: both at once on pairs; ``itm``: image-text matching with hard negatives. ``ssl_image`` and
    ``ssl_text``: contrast of an image, or a text, with a changed copy of itself; beside ``itc`` on trusted pairs they
    clean a poisoned model (CleanCLIP).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    itc: float = Field(default=0.0, ge=0)
    mlm: float = Field(default=0.0, ge=0)
    mim: float = Field(default=0.0, ge=0)
    mvlm: float = Field(default=0.0, ge=0)
    itm: float = Field(default=0.0, ge=0)
    ssl_image: float = Field(default=0.0, ge=0)
    ssl_text: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Objectives:
        if not any(self.model_dump().values()):
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)} a positive weight")
        if self.itm and not self.itc:
            raise ValueError(
                "itm draws its hard negatives by the similarities of itc: give itc a positive weight too"
            )
        return self

    @property
    def masked(self) -> tuple[str, ...]:
        """Names of the masked-data objectives in use."""
        factors = {"mlm": self.mlm, "mim": self.mim, "mvlm": self.mvlm}
        return tuple(name for name, factor in factors.items() if factor)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the objectives read, in the backbone's order."""
        pairs = self.itc or self.mvlm or self.itm
        wanted = (
            ("vision", self.mim or self.ssl_image or pairs),
            ("text", self.mlm or self.ssl_text or pairs),
        )
        return tuple(name for name, needed in wanted if needed)


class Masking(BaseModel):
    """Hidden shares: of the tokens of texts alone and in pairs, and of the patches of images.

    ``replacement``: ``mask`` hides every chosen token behind ``<mask>``; ``bert`` does so for 80 %, puts a random token
    in the place of 10 % and leaves 10 % as they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: float = Field(default=0.15, gt=0, lt=1)
    text_in_pairs: float = Field(default=0.5, gt=0, lt=1)
    patches: float = Field(default=0.4, gt=0, lt=1)
    replacement: Literal["mask", "bert"] = "mask"


class PretrainingRecipe(BaseModel):
    """Pre-training on a folder of image-text pairs.

    Held-out items are those of ``validation_data``, else those whose split is ``validation_split``, else a random
    ``validation_fraction``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path
    validation_data: Path | None = None
    validation_split: str | None = None
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    validation_items: PositiveInt = 512
    objectives: Objectives
    masking: Masking = Masking()
    trainable: Part = "all"
    scale_initialisation: bool = True
    tokenizer: Path | None = None
    text_length: int = Field(64, ge=3, le=1022)
    image_size: PositiveInt = 224
    smallest_crop: float = Field(0.5, gt=0, le=1)
    visual_codes: int = Field(8192, ge=2, le=1_000_000)
    batch_size: int = Field(64, ge=2)
    workers: int = Field(1, ge=0, le=64)
    every: PositiveInt = 1
    weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _has_tokenizer(self) -> PretrainingRecipe:
        if "text" in self.objectives.modalities and self.tokenizer is None:
            raise ValueError(
                "objectives on text need tokenizer, the sentencepiece model of BEiT-3 (beit3.spm)"
            )
        return self

    def check_modalities(self, modalities: tuple[str, ...]) -> None:
        """Refuse objectives, or a trainable part, that a backbone of ``modalities`` does not have.

        Raises:
            ValueError: a modality is missing.
        """
        wanted = {*self.objectives.modalities, *(() if self.trainable == "all" else (self.trainable,))}
        if missing := sorted(wanted - set(modalities)):
            raise ValueError(
                f"pretraining needs {' and '.join(missing)}: add it to backbone.modalities, now {list(modalities)}"
            )
