"""Two views of every labelled image, and batches of P classes with K images each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mca_perception.classification.auto_augment import load_policy
from mca_perception.classification.recipe import ViewAugmentation
from mca_perception.classification.views import changed_view
from mca_perception.datasets.images import read_rgb
from mca_perception.errors import DatasetError


class Views(NamedTuple):
    """Two views of an image.

    Attributes:
        first: ``[3, S, S]`` uint8.
        second: ``[3, S, S]`` uint8.
        label: class id.
    """

    first: Tensor
    second: Tensor
    label: int


class ViewDataset(Dataset[Views]):
    """Two independently changed views per image; the draws depend on the loader's seed, the image and the view.

    Args:
        paths: image files.
        labels: ``[N]`` class ids.
        size: side of a view in pixels.
        augmentation: strengths.

    Raises:
        RecipeError: AutoAugment is wanted and torchvision cannot be imported.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: NDArray[np.int64],
        size: int,
        augmentation: ViewAugmentation,
    ) -> None:
        if augmentation.auto_augment is not None:
            load_policy(
                augmentation.auto_augment
            )  # here, not in a worker, it is missed before the run begins
        self.paths, self.labels, self.size, self.augmentation = paths, labels, size, augmentation

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Views:
        image = read_rgb(self.paths[position], oriented=True)
        seed = torch.initial_seed() % 2**63
        views = (
            changed_view(image, self.size, self.augmentation, np.random.default_rng((position, number, seed)))
            for number in range(2)
        )
        first, second = (torch.from_numpy(view.transpose(2, 0, 1).copy()) for view in views)
        return Views(first, second, int(self.labels[position]))


class ClassBalancedSampler(Sampler[list[int]]):
    """Batches of ``P`` classes with ``K`` images each, as many batches as one pass has.

    Classes take turns in random order; a class with fewer than K images repeats some. This changes the methods: an
    anchor then has positives beside its own second view in every batch (section 8, item 11).

    Args:
        labels: ``[N]`` class ids.
        batch_size: P times K.
        images_per_class: K.
        seed: of the draws.

    Raises:
        DatasetError: there are fewer than P classes.
    """

    def __init__(self, labels: NDArray[np.int64], batch_size: int, images_per_class: int, seed: int) -> None:
        self.groups = [np.flatnonzero(labels == name) for name in np.unique(labels)]
        self.classes, self.images = batch_size // images_per_class, images_per_class
        if len(self.groups) < self.classes:
            raise DatasetError(
                f"batches of {self.classes} classes need as many, the data has {len(self.groups)}; raise "
                "images_per_class or lower batch_size"
            )
        self.count = len(labels) // batch_size
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        waiting: list[int] = []
        for _ in range(self.count):
            if len(waiting) < self.classes:
                rest = [i for i in self.rng.permutation(len(self.groups)).tolist() if i not in waiting]
                waiting += rest
            chosen, waiting = waiting[: self.classes], waiting[self.classes :]
            yield [item for i in chosen for item in self._draw(self.groups[i])]

    def _draw(self, group: NDArray[np.int64]) -> list[int]:
        order = [int(i) for i in self.rng.permutation(group)]
        repeats = -(-self.images // len(order))
        return (order * repeats)[: self.images]


def hold_out(
    labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices to train on and held out: ``fraction`` of every class with two images or more, at least one of these."""
    rng = np.random.default_rng(seed)
    train, held_out = [], []
    for name in np.unique(labels):
        items = rng.permutation(np.flatnonzero(labels == name))
        count = max(1, round(fraction * len(items))) if len(items) > 1 else 0
        held_out.append(items[:count])
        train.append(items[count:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held_out))
