"""Images with a class each: a folder with one folder of images per class, or the Grocery Store data set."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.grocery import is_grocery, read_grocery
from mca_perception.datasets.images import find_images
from mca_perception.errors import DatasetError

__all__ = ["LabelledImages", "read_labelled_images"]

MAX_IMAGES = 2_000_000


@dataclass(frozen=True)
class LabelledImages:
    """Images and their classes.

    Attributes:
        root: folder of the data set.
        paths: ``N`` image files.
        labels: int64 ``[N]``, indices into ``classes``.
        classes: names, sorted.
        skipped: what was left out, by reason.
    """

    root: Path
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    skipped: Counter[str]

    def relative(self, number: int) -> str:
        """Path of an image below the folder."""
        return self.paths[number].relative_to(self.root).as_posix()


def read_labelled_images(
    data: str | os.PathLike[str], split: str | None = None, *, classes: tuple[str, ...] | None = None
) -> LabelledImages:
    """Read a data set.

    Args:
        data: ``DATA/CLASS/*.jpg``, ``DATA/SPLIT/CLASS/*.jpg``, or the Grocery Store data set with ``SPLIT.txt``.
        split: name of the part; ``train`` by default where there is one, else the whole folder.
        classes: names that the labels shall index; images of other classes are left out. By default those that occur.

    Raises:
        DatasetError: the folder or the split is missing, or holds no image or only one class.
    """
    root = Path(data)
    if is_grocery(root):
        index = read_grocery(root, split or "train")
        named = [(path, pick.product_id) for pick in index.picks for path in pick.views.values()]
        skipped = Counter(index.skipped)
    else:
        named, skipped = _read_folder(root, split)
    known = tuple(sorted({name for _, name in named})) if classes is None else classes
    numbers = {name: number for number, name in enumerate(known)}
    used = [(path, numbers[name]) for path, name in named if name in numbers]
    if len(used) < len(named):
        skipped["image of a class that is not trained on"] += len(named) - len(used)
    if not used or len(known) < 2:
        raise DatasetError(
            f"{root} gives {len(used)} images of {len(known)} classes; give a folder with a folder of images for "
            "each of at least 2 classes"
        )
    paths, labels = zip(*used, strict=True)
    return LabelledImages(root, paths, np.array(labels, np.int64), known, skipped)


def _read_folder(root: Path, split: str | None) -> tuple[list[tuple[Path, str]], Counter[str]]:
    base = root / split if split else root / "train"
    if not base.is_dir():
        if split and split != "train":
            raise DatasetError(f"{root} has no folder {split}; choose another split or leave it out")
        base = root
    if not base.is_dir():
        raise DatasetError(f"{root} is no folder; give one with a folder of images per class")
    skipped: Counter[str] = Counter()
    named: list[tuple[Path, str]] = []
    for folder in sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith(".")):
        images = find_images(folder)
        skipped["class folder without images"] += not images
        named += [(path, folder.name) for path in images]
        if len(named) > MAX_IMAGES:
            raise DatasetError(f"{base} holds more than {MAX_IMAGES:,} images; use a part of them")
    return named, +skipped
