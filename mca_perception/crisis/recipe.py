"""The crisis parts of training recipes and their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from mca_perception.crisis.features import NgramConfig
from mca_perception.errors import RecipeError

__all__ = [
    "CrisisRecipe",
    "ImagePart",
    "LinearRecipe",
    "LinearTaskRecipe",
    "TextPart",
    "is_linear_recipe",
    "load_linear_recipe",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LinearTaskRecipe(_Section):
    """One classifier of the linear model; see :class:`~mca_perception.crisis.linear.LinearSettings`."""

    c: PositiveFloat = 0.2
    balance: float = Field(default=0.0, ge=0, le=1)
    min_documents: PositiveInt = 2


class LinearSection(_Section):
    """The linear model on TF-IDF n-grams: data, features, and a classifier per task.

    The tasks are trained apart, as their splits overlap. ``folds`` serve temperature and alert threshold.
    """

    data: Path
    features: NgramConfig = NgramConfig()
    informative: LinearTaskRecipe = LinearTaskRecipe()
    humanitarian: LinearTaskRecipe = LinearTaskRecipe()
    folds: int = Field(4, ge=2, le=50)

    def task(self, name: str) -> LinearTaskRecipe:
        """Settings of ``informative`` or ``humanitarian``."""
        return self.informative if name == "informative" else self.humanitarian


class LinearRecipe(_Section):
    """A recipe whose only part is ``crisis_linear``; it needs neither torch nor a backbone."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    description: str = ""
    seed: int = 0
    crisis_linear: LinearSection


def is_linear_recipe(path: Path) -> bool:
    """Whether a recipe file has the part ``crisis_linear``; files that cannot be read are left to other loaders."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and "crisis_linear" in content


def load_linear_recipe(path: Path, overrides: Sequence[str] = ()) -> LinearRecipe:
    """Read a recipe and apply ``section.key=value`` overrides (values are YAML).

    Raises:
        RecipeError: the file is no valid recipe, or an override does not fit it; the message names the field.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator:
                raise RecipeError(f"override {override!r} is not of the form section.key=value")
            *sections, last = key.split(".")
            node = content
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = yaml.safe_load(value)
        return LinearRecipe.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise RecipeError(f"recipe {path} or a change to it cannot be used: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()
        )
        raise RecipeError(f"recipe {path}: {problems}") from error


class TextPart(_Section):
    """The text side of a neural model.

    ``encoder``: ``backbone`` (with ``tokenizer``), ``ngrams`` (with ``features``, ``width``), ``transformers:FOLDER``
    or ``vectors:FILE`` (with ``vocabulary``). ``head`` is that of a model of text alone. ``lr_scale`` is on the
    encoder's learning rate, except the backbone's.
    """

    encoder: str = "backbone"
    head: Literal["dense_1", "dense_3", "conv_stack", "kim_cnn"] = "dense_3"
    length: int = Field(100, ge=3, le=512)
    tokenizer: Path | None = None
    features: NgramConfig = NgramConfig()
    width: int = Field(64, ge=1, le=4096)
    vocabulary: int = Field(20_000, ge=1, le=2_000_000)
    remove_stop_words: bool = False
    lr_scale: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _has_tokenizer(self) -> TextPart:
        if self.encoder == "backbone" and self.tokenizer is None:
            raise ValueError(
                "encoder backbone needs tokenizer, the sentencepiece model of BEiT-3 (beit3.spm)"
            )
        return self


class ImagePart(_Section):
    """The image side: ``backbone``, ``timm:NAME`` or ``torchvision:NAME`` with ``weights`` as safetensors."""

    encoder: str = "backbone"
    weights: Path | None = None
    size: int = Field(224, ge=16, le=1024)
    freeze: bool = False
    lr_scale: PositiveFloat = 1.0


class CrisisRecipe(_Section):
    """A neural model of one CrisisMMD task: of text, of images, or of both by ``fusion``.

    ``joint`` adds the backbone's state of text and image read together. ``modality_dropout`` is the share of complete
    posts that lose a given modality in training.
    """

    data: Path
    task: Literal["informative", "humanitarian"]
    text: TextPart | None = None
    image: ImagePart | None = None
    fusion: Literal["dense", "conv"] = "dense"
    joint: bool = False
    modality_dropout: float = Field(0.15, ge=0, le=0.5)
    validation_split: Literal["dev", "test"] = "dev"
    batch_size: int = Field(32, ge=2)
    workers: int = Field(0, ge=0, le=64)
    every: PositiveInt = 1
    weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _consistent(self) -> CrisisRecipe:
        if self.text is None and self.image is None:
            raise ValueError("name text, image or both")
        parts = [part.encoder for part in (self.text, self.image) if part is not None]
        if self.joint and parts != ["backbone", "backbone"]:
            raise ValueError("joint reads text and image with the backbone: both encoders must be backbone")
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the model reads, out of ``text`` and ``image``."""
        parts = (("text", self.text), ("image", self.image))
        return tuple(name for name, part in parts if part is not None)

    def check_backbone(self, modalities: tuple[str, ...]) -> None:
        """Refuse a backbone without the modalities that this model reads with it.

        Raises:
            ValueError: one is missing.
        """
        parts = (("text", self.text), ("vision", self.image))
        wanted = {name for name, part in parts if part is not None and part.encoder == "backbone"}
        if missing := sorted(wanted - set(modalities)):
            raise ValueError(
                f"crisis reads {' and '.join(missing)} with the backbone: add it to backbone.modalities, now "
                f"{list(modalities)}"
            )
