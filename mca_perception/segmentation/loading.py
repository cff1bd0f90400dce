"""Data sets and batches of a segmentation recipe, whichever head it trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from mca_perception.datasets.coco import CocoSplit
from mca_perception.datasets.workers import WORKER_CONTEXT, initialise_worker
from mca_perception.segmentation.data import SegmentationDataset
from mca_perception.segmentation.recipe import SegmentationRecipe

__all__ = ["Splits", "open_splits", "training_loader"]


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


def training_loader(
    dataset: Dataset[Any], recipe: SegmentationRecipe, collate: Callable[[list[Any]], Any], seed: int
) -> DataLoader[Any]:
    """One pass over ``dataset`` in the random order of ``seed``; an incomplete last batch is left out."""
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        dataset,
        recipe.batch_size,
        sampler=RandomSampler(dataset, generator=generator),  # type: ignore[arg-type]  # it has a length
        num_workers=recipe.workers,
        collate_fn=collate,
        drop_last=True,
        worker_init_fn=initialise_worker,
        multiprocessing_context=WORKER_CONTEXT if recipe.workers else None,
        generator=generator,
    )
