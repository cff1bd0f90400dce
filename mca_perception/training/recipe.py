"""Recipes: one YAML file per training run, validated before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from mca_perception.backbone.adapters import AdapterConfig
from mca_perception.classification.recipe import ClassificationRecipe
from mca_perception.crisis.recipe import CrisisRecipe
from mca_perception.defects.clips.recipe import ClipsRecipe
from mca_perception.defects.recipe import DefectsRecipe
from mca_perception.errors import RecipeError
from mca_perception.identification.recipe import IdentificationRecipe
from mca_perception.pretraining.recipe import PretrainingRecipe
from mca_perception.retrieval.recipe import RetrievalRecipe
from mca_perception.segmentation.recipe import SegmentationRecipe

TASKS = (
    "segmentation",
    "identification",
    "defects",
    "clips",
    "pretraining",
    "retrieval",
    "classification",
    "crisis",
)


class Section(BaseModel):
    """A part of a recipe; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneSection(Section):
    """Which backbone, and where its first weights come from; ``none`` for crisis models with encoders of their own.

    ``vocab_size``: rows of the word embedding, where the vocabulary is smaller than BEiT-3's.
    """

    name: str
    img_size: PositiveInt = 224
    modalities: tuple[Literal["vision", "text"], ...] = ("vision",)
    drop_path_rate: float = Field(default=0.0, ge=0, lt=1)
    vocab_size: PositiveInt | None = None
    checkpoint: Path | None = None
    freeze: bool = False
    gradient_checkpointing: bool = False


class OptimiserSection(Section):
    """AdamW with warm-up, a flat part and a cosine tail; an exponential moving average is what gets shipped.

    ``layer_decay`` lowers the learning rate of the backbone from block to block towards the input; 1 leaves it the
    same everywhere. A step sums the gradients of ``accumulation_steps`` batches of every task.
    """

    lr: PositiveFloat = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(default=0.05, ge=0)
    clip_norm: PositiveFloat = 1.0
    warmup_steps: PositiveInt = 200
    flat_fraction: float = Field(default=0.6, ge=0, le=1)
    final_lr_fraction: float = Field(default=0.02, ge=0, le=1)
    ema_decay: float = Field(default=0.998, ge=0, lt=1)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    accumulation_steps: PositiveInt = 1


class BudgetSection(Section):
    """When to stop: whichever limit is reached first. The schedule follows the larger fraction used.

    ``validate_steps`` takes the place of ``validate_minutes``. With ``monitor``, a validation metric of which more is
    better, the run's result is the average that scored best, not the last one; ``patience`` ends the run after so
    many validations in a row without a better one.
    """

    max_steps: PositiveInt | None = None
    max_minutes: PositiveFloat | None = None
    checkpoint_minutes: PositiveFloat = 5.0
    validate_minutes: PositiveFloat = 10.0
    validate_steps: PositiveInt | None = None
    monitor: str | None = Field(default=None, pattern=r"^[a-z]+/\S+$")
    patience: PositiveInt | None = None

    @model_validator(mode="after")
    def _bounded(self) -> BudgetSection:
        if self.max_steps is None and self.max_minutes is None:
            raise ValueError("set max_steps, max_minutes or both")
        if self.patience is not None and self.monitor is None:
            raise ValueError("patience needs monitor, for example segmentation/mask_map50")
        return self


class Recipe(Section):
    """A training run.

    ``init_from`` names the folder of an earlier run: its averaged weights are where this run starts, for every part
    that the two models share.

    ``adapter`` (``multiway``, ``lora``, a mapping with their settings, or ``none``) freezes the backbone and trains
    that beside the heads.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    description: str = ""
    seed: int = 0
    init_from: Path | None = None
    backbone: BackboneSection
    adapter: AdapterConfig | None = None
    segmentation: SegmentationRecipe | None = None
    identification: IdentificationRecipe | None = None
    defects: DefectsRecipe | None = None
    clips: ClipsRecipe | None = None
    pretraining: PretrainingRecipe | None = None
    retrieval: RetrievalRecipe | None = None
    classification: ClassificationRecipe | None = None
    crisis: CrisisRecipe | None = None
    optimiser: OptimiserSection = OptimiserSection()
    budget: BudgetSection
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    device: str = "auto"

    @field_validator("adapter", mode="before")
    @classmethod
    def _adapter_by_name(cls, value: Any) -> Any:
        if value == "none":
            return None
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_task(self) -> Recipe:
        named = [task for task in TASKS if getattr(self, task) is not None]
        if not named:
            raise ValueError(f"name at least one task: {', '.join(TASKS)}")
        if self.backbone.name == "none" and (named != ["crisis"] or self.adapter is not None):
            raise ValueError("backbone.name none is for a crisis model alone, without an adapter")
        if self.pretraining is not None:
            self.pretraining.check_modalities(self.backbone.modalities)
        if self.retrieval is not None:
            self.retrieval.check_modalities(self.backbone.modalities)
        if self.crisis is not None:
            self.crisis.check_backbone(() if self.backbone.name == "none" else self.backbone.modalities)
        return self

    @model_validator(mode="after")
    def _shares_crops(self) -> Recipe:
        """One backbone pass over the crops serves identification and defects."""
        if self.identification is not None and self.defects is not None:
            for setting in ("crop_size", "margin"):
                if getattr(self.identification, setting) != getattr(self.defects, setting):
                    raise ValueError(
                        f"set defects.{setting} to identification.{setting}: both heads share the crops"
                    )
        return self

    @model_validator(mode="after")
    def _starts_where_frames_are_judged(self) -> Recipe:
        if self.clips is not None and self.clips.frozen_frames and self.init_from is None:
            raise ValueError("clips.frozen_frames needs init_from, a run or bundle with a defect head")
        return self

    @model_validator(mode="after")
    def _has_one_embedding(self) -> Recipe:
        if self.classification is not None and self.identification is not None:
            raise ValueError(
                "classification and identification each make the bundle's embedding: train one of them per run"
            )
        return self

    @model_validator(mode="after")
    def _monitors_validation_data(self) -> Recipe:
        """Weights are chosen on a task of this recipe, never on a test split."""
        if self.budget.monitor is None:
            return self
        task = self.budget.monitor.partition("/")[0]
        section = getattr(self, task) if task in TASKS else None
        if section is None:
            raise ValueError(f"budget.monitor {self.budget.monitor!r} names no task of this recipe")
        if getattr(section, "validation_split", None) == "test":
            raise ValueError(
                f"budget.monitor would choose weights on the test split: set {task}.validation_split to another"
            )
        return self


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply ``section.key=value`` overrides (values are YAML).

    Raises:
        RecipeError: the file is missing or no YAML mapping, an override has no ``=``, or a field is unknown or out of
            range; the message names the field.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"recipe {path} does not exist; see the recipes/ folder for examples")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise RecipeError(f"recipe {path} is not a YAML mapping")
        for override in overrides or []:
            _apply_override(content, override)
        return Recipe.model_validate(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not valid YAML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()
        )
        raise RecipeError(f"recipe {path}: {problems}") from error


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"override {override!r} is not of the form section.key=value")
    *sections, last = key.split(".")
    node: Any = content
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise RecipeError(f"override {override!r}: {section} is not a section of the recipe")
    node[last] = yaml.safe_load(value)
