"""The cascade as a task of the training loop: chosen by the recipe, learns, is judged by pycocotools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mca_perception.backbone import create_backbone
from mca_perception.segmentation.cascade.data import collate
from mca_perception.segmentation.cascade.task import CascadeTask, cascade_config
from mca_perception.segmentation.heads import create_task
from mca_perception.segmentation.recipe import SegmentationRecipe
from mca_perception.segmentation.task import SegmentationTask
from mca_perception.segmentation.validation import mask_average_precision
from tests.support.datasets import write_tote_set
from tests.support.overfitting import CPU, fit, overfit, write_eight_totes


def recipe(data: Path, **changes: Any) -> SegmentationRecipe:
    settings = {
        "data": data,
        "head": "cascade",
        "input_size": (96, 128),
        "batch_size": 2,
        "workers": 0,
        "validation_split": "train",
    }
    return SegmentationRecipe.model_validate({**settings, **changes})


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four totes of one to four coloured rectangles."""
    folder = tmp_path_factory.mktemp("rectangles")
    write_tote_set(folder, 4, split="train")
    return folder


def test_recipe_chooses_the_head(rectangles: Path) -> None:
    assert isinstance(create_task(recipe(rectangles, head="edge"), 32, 0), SegmentationTask)
    task = create_task(recipe(rectangles, labels=("Tote", "Object"), max_objects=7), 32, 0)
    assert isinstance(task, CascadeTask)
    assert task.head.config.labels == ("Tote", "Object")
    assert task.head.config.selection.max_objects == 7
    assert cascade_config(recipe(rectangles, cascade="base")).channels == 256
    with pytest.raises(ValidationError, match="head"):
        recipe(rectangles, head="mask2former")


def test_batches_are_seeded_and_complete(rectangles: Path) -> None:
    task = CascadeTask(recipe(rectangles, batch_size=3, labels=("Object", "Tote")), 32, 0)
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        [(images, targets)] = task.batches(seed)
        assert images.shape == (3, 3, 96, 128)
        assert len(targets) == 3
        orders.append(images)
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_losses_fall_on_two_images(rectangles: Path) -> None:
    """In sixteen steps, finding, naming and outlining become twice as good.

    The terms of the later stages rise at first: it takes good boxes from the stage before to give them work.
    """
    torch.manual_seed(0)
    backbone = create_backbone("beit3_nano_patch16", img_size=64, depth=2)
    task = CascadeTask(recipe(rectangles, input_size=(64, 80)), backbone.embed_dim, 0)
    samples = [task.validation[index] for index in (1, 2)]
    history = fit(task, backbone, samples, collate, steps=16, batch=2, rate=3e-3)
    first, last = (
        sum(step[n] for n in ("objectness", "class_1", "mask")) for step in (history[0], history[-1])
    )
    assert last < 0.5 * first


def test_validation_is_that_of_pycocotools_on_the_pasted_masks(rectangles: Path) -> None:
    """A head that repeats the truth is given full marks, one that says nothing none."""
    backbone = create_backbone("beit3_nano_patch16", img_size=96, depth=1)
    task = CascadeTask(recipe(rectangles, labels=("Object", "Tote")), backbone.embed_dim, 0)
    task.head.eval()
    truths = [task.validation[index].targets for index in range(len(task.validation))]
    perfect = (
        (
            (np.full(len(t.labels), 0.9, np.float32), t.labels.numpy(), t.masks.numpy()),
            (t.masks.numpy(), t.labels.numpy()),
        )
        for t in truths
    )
    assert mask_average_precision(perfect, ("Object", "Tote"))["mask_map"] == pytest.approx(1.0)
    figures = task.validate(backbone, CPU)
    assert set(figures) >= {"mask_map", "mask_map50", "mask_map75"}
    assert figures["mask_map50"] < 0.2
    task.head.heads.regions.config = replace(
        task.head.config, selection=replace(task.head.config.selection, score_threshold=1.0)
    )
    assert set(task.validate(backbone, CPU).values()) == {0.0}


@pytest.mark.slow
@pytest.mark.training
@pytest.mark.timeout(7200)
def test_overfits_eight_totes(tmp_path: Path) -> None:
    """Mask AP50 above 0.95 on eight synthesised totes after 450 steps of four images."""
    write_eight_totes(tmp_path)
    torch.manual_seed(0)
    backbone = create_backbone("beit3_nano_patch16", img_size=160, depth=4)
    task = CascadeTask(recipe(tmp_path, input_size=(160, 208)), backbone.embed_dim, 0)
    assert overfit(task, backbone, collate, steps=450) > 0.95
