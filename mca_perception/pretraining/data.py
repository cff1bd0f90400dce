"""Batches of image-text pairs, or of images or texts alone, for pre-training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mca_perception.datasets.images import read_rgb, resize_square
from mca_perception.datasets.pairs import Item, read_pairs
from mca_perception.errors import DatasetError
from mca_perception.pretraining.masking import block_mask
from mca_perception.pretraining.recipe import PretrainingRecipe

# Aspect ratios of random crops, as usual in image training.
WIDEST_CROP = 4 / 3
CROP_ATTEMPTS = 10


class Sample(NamedTuple):
    """One item: an image with the patches to hide, a text, or both.

    Attributes:
        image: ``[3, S, S]`` uint8 RGB, or None.
        hidden_patches: ``[T]`` bool, or None.
        text: one text, or None.
        label: equal for items that match each other.
    """

    image: NDArray[np.uint8] | None
    hidden_patches: NDArray[np.bool_] | None
    text: str | None
    label: int


class Batch(NamedTuple):
    """N samples; what the objectives do not read is None.

    Attributes:
        images: ``[N, 3, S, S]`` uint8 RGB.
        hidden_patches: ``[N, T]`` bool.
        texts: N texts.
        labels: ``[N]`` int64.
    """

    images: Tensor | None
    hidden_patches: Tensor | None
    texts: list[str] | None
    labels: Tensor


class ItemDataset(Dataset[Sample]):
    """One image and one text of every item.

    Args:
        items: what to read; each has what ``modalities`` ask for.
        modalities: what to return, out of ``vision`` and ``text``.
        image_size: side of the square images in pixels.
        patch_size: side of a patch in pixels.
        hidden_share: of the patches.
        smallest_crop: least share of the image's area in a random crop; None for the whole first image and the first
            text of each item, with masks that depend on the position alone.
    """

    def __init__(
        self,
        items: Sequence[Item],
        modalities: tuple[str, ...],
        *,
        image_size: int,
        patch_size: int,
        hidden_share: float,
        smallest_crop: float | None,
    ) -> None:
        self.items = items
        self.modalities = modalities
        self.image_size = image_size
        self.grid = (image_size // patch_size,) * 2
        self.hidden_share = hidden_share
        self.smallest_crop = smallest_crop
        known: dict[tuple[str, ...], int] = {}
        self.labels = [
            known.setdefault(item.texts or (item.id,), number) for number, item in enumerate(items)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Sample:
        item, varied = self.items[position], self.smallest_crop is not None
        rng = np.random.default_rng((position, torch.initial_seed() % 2**63) if varied else position)
        image, hidden, text = None, None, None
        if "vision" in self.modalities:
            photo = read_rgb(item.images[int(rng.integers(len(item.images))) if varied else 0])
            if self.smallest_crop is not None:
                photo = random_crop(photo, self.smallest_crop, rng)
            image = np.ascontiguousarray(resize_square(photo, self.image_size).transpose(2, 0, 1))
            hidden = block_mask(self.grid, self.hidden_share, rng)
        if "text" in self.modalities:
            text = item.texts[int(rng.integers(len(item.texts))) if varied else 0]
        return Sample(image, hidden, text, self.labels[position])


def collate(samples: list[Sample]) -> Batch:
    """Stack samples of one data set."""
    images = [sample.image for sample in samples if sample.image is not None]
    hidden = [sample.hidden_patches for sample in samples if sample.hidden_patches is not None]
    texts = [sample.text for sample in samples if sample.text is not None]
    return Batch(
        torch.from_numpy(np.stack(images)) if images else None,
        torch.from_numpy(np.stack(hidden)) if hidden else None,
        texts or None,
        torch.tensor([sample.label for sample in samples]),
    )


def random_crop(image: NDArray[np.uint8], smallest: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random part of ``[H, W, 3]`` with an area share of ``smallest`` to 1. Never mirrored: print reads one way."""
    height, width = image.shape[:2]
    for _ in range(CROP_ATTEMPTS):
        area = rng.uniform(smallest, 1.0) * height * width
        aspect = float(np.exp(rng.uniform(-np.log(WIDEST_CROP), np.log(WIDEST_CROP))))
        rows, columns = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
        if 0 < rows <= height and 0 < columns <= width:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            return image[top : top + rows, left : left + columns]
    return image


class Split(NamedTuple):
    """Items to train on, held-out items, and what the readers skipped in each part of the data, by reason."""

    train: list[Item]
    held_out: list[Item]
    skipped: dict[str, Counter[str]]


def split_items(recipe: PretrainingRecipe, seed: int) -> Split:
    """Read the recipe's data and hold the validation items back.

    Raises:
        DatasetError: a folder is not usable, a part is empty, or less is left than one batch.
    """
    names = {"vision": "image", "text": "text"}
    need = tuple(names[modality] for modality in recipe.objectives.modalities)
    index = read_pairs(recipe.data, need=need)
    train = list(index.items)
    skipped = {"train": index.skipped}
    if recipe.validation_data is not None:
        validation = read_pairs(recipe.validation_data, need=need)
        held_out = list(validation.items)
        skipped["validation"] = validation.skipped
    elif recipe.validation_split is not None:
        held_out = [item for item in train if item.split == recipe.validation_split]
        train = [item for item in train if item.split != recipe.validation_split]
    else:
        order = np.random.default_rng(seed).permutation(len(train))
        chosen = set(order[: max(1, round(recipe.validation_fraction * len(train)))].tolist())
        held_out = [item for number, item in enumerate(train) if number in chosen]
        train = [item for number, item in enumerate(train) if number not in chosen]
    if not held_out:
        known = sorted({item.split for item in train if item.split})
        raise DatasetError(
            f"{recipe.data} has no item of split {recipe.validation_split!r} "
            f"(there are: {', '.join(known) or 'none'}); "
            "set pretraining.validation_split to one of these, or to null for a random part"
        )
    if len(train) < recipe.batch_size:
        raise DatasetError(
            f"{recipe.data} leaves {len(train)} training items for a batch of {recipe.batch_size}; "
            "add pairs or lower pretraining.batch_size"
        )
    order = np.random.default_rng(seed).permutation(len(held_out))[: recipe.validation_items]
    return Split(train, [held_out[number] for number in sorted(order)], skipped)
