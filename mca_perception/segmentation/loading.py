"""Data sets of a segmentation recipe, whichever head it trains."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from mca_perception.datasets.coco import CocoSplit
from mca_perception.segmentation.data import SegmentationDataset
from mca_perception.segmentation.recipe import SegmentationRecipe

__all__ = ["Splits", "open_splits"]


class Splits(NamedTuple):
    """Training and validation scenes, and what their readers left out, by split and reason."""

    train: SegmentationDataset
    validation: SegmentationDataset
    skipped: dict[str, Counter[str]]


def open_splits(recipe: SegmentationRecipe, seed: int) -> Splits:
    """Open the recipe's folder.

    Args:
        recipe: names the folder, the splits, the classes and the input size.
        seed: of the random changes of training scenes.

    Raises:
        DatasetError: a split cannot be read.
    """
    train = CocoSplit.open(recipe.data, subset=recipe.subset, split=recipe.train_split)
    validation = CocoSplit.open(
        recipe.data, subset=recipe.subset, split=recipe.validation_split, limit=recipe.validation_images
    )
    return Splits(
        SegmentationDataset(train.records, recipe.labels, recipe.input_size, recipe.augmentation, seed),
        SegmentationDataset(validation.records, recipe.labels, recipe.input_size, None),
        {"train": train.skipped, "validation": validation.skipped},
    )
