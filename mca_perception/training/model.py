"""The shared backbone with the heads of a recipe."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from torch import nn

from mca_perception.backbone import Backbone, NoBackbone, create_backbone, load_checkpoint
from mca_perception.backbone.adapters import freeze_backbone, inject
from mca_perception.classification.task import ClassificationTask
from mca_perception.crisis.networks.task import CrisisTask
from mca_perception.defects.clips.task import ClipTask
from mca_perception.defects.task import DefectTask
from mca_perception.identification.task import IdentificationTask
from mca_perception.pretraining.model import freeze_other_parts, initialise
from mca_perception.pretraining.task import PretrainingTask
from mca_perception.retrieval.task import RetrievalTask
from mca_perception.segmentation.heads import create_task
from mca_perception.training.checkpoints import load_shared_weights
from mca_perception.training.recipe import BackboneSection, Recipe
from mca_perception.training.task import Task


class PerceptionModel(nn.Module):
    """One backbone, one head per task; state-dict keys are ``backbone.*`` and ``heads.<task>.*``."""

    def __init__(self, backbone: Backbone, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)


def build(recipe: Recipe) -> tuple[PerceptionModel, list[Task]]:
    """Model with fresh (or the recipe's checkpoint's) weights, and its tasks with their data opened."""
    section = recipe.backbone
    backbone = _create(section)
    dual_encoder = recipe.pretraining or recipe.retrieval
    if dual_encoder is not None:
        initialise(backbone, dual_encoder)
    if section.checkpoint is not None:
        report = load_checkpoint(backbone, section.checkpoint)
        _tell(f"{section.checkpoint}: {report.summary()}")
    if section.freeze:
        freeze_backbone(backbone)
    if recipe.adapter is not None:
        inject(backbone, recipe.adapter)
    tasks: list[Task] = []
    if recipe.segmentation is not None:
        tasks.append(create_task(recipe.segmentation, backbone.embed_dim, recipe.seed))
    if recipe.identification is not None:
        tasks.append(IdentificationTask(recipe.identification, backbone.embed_dim, recipe.seed))
    if recipe.defects is not None:
        tasks.append(DefectTask(recipe.defects, backbone.embed_dim, recipe.seed))
    if recipe.clips is not None:
        tasks.append(ClipTask(recipe.clips, backbone.embed_dim, recipe.seed))
    if recipe.pretraining is not None:
        tasks.append(PretrainingTask(recipe.pretraining, backbone, recipe.seed))
        freeze_other_parts(backbone, recipe.pretraining.trainable)
    if recipe.retrieval is not None:
        tasks.append(RetrievalTask(recipe.retrieval, backbone, recipe.seed))
    if recipe.classification is not None:
        tasks.append(ClassificationTask(recipe.classification, backbone, recipe.seed))
    if recipe.crisis is not None:
        tasks.append(CrisisTask(recipe.crisis, backbone, recipe.seed))
    model = PerceptionModel(backbone, {task.name: task.head for task in tasks})
    if recipe.init_from is not None:
        untouched = load_shared_weights(recipe.init_from, model)
        _tell(f"{recipe.init_from}: {_taken(model, untouched)}")
        for task in tasks:
            if isinstance(task, ClassificationTask):
                task.head.batches.zero_()  # another run's stage is not this one's
            if isinstance(task, ClipTask):
                task.check_start(untouched)
    return model, tasks


def _tell(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, markup=False)


def _taken(model: PerceptionModel, untouched: list[str]) -> str:
    """How much of each part of the model another run's weights filled."""
    fresh = Counter(map(_part, untouched))
    every = Counter(map(_part, model.state_dict()))
    counts = (f"{name} {count - fresh[name]} of {count}" for name, count in every.items())
    return f"tensors taken: {', '.join(counts)}"


def _part(key: str) -> str:
    """``backbone``, or ``heads.<task>``."""
    names = key.split(".")
    return names[0] if names[0] == "backbone" else ".".join(names[:2])


def _create(section: BackboneSection) -> Backbone:
    if section.name == "none":
        return NoBackbone()
    overrides: dict[str, Any] = {"gradient_checkpointing": True} if section.gradient_checkpointing else {}
    if section.vocab_size is not None:
        overrides["vocab_size"] = section.vocab_size
    return create_backbone(
        section.name,
        img_size=section.img_size,
        modalities=section.modalities,
        drop_path_rate=section.drop_path_rate,
        **overrides,
    )
