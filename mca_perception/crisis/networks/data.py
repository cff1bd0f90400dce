"""Batches of CrisisMMD posts for neural models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mca_perception.crisis.networks.encoders import TextInputs
from mca_perception.crisis.networks.model import CrisisInputs
from mca_perception.datasets.crisismmd import LabelledPost, first_of_each_tweet, image_path
from mca_perception.datasets.images import read_rgb
from mca_perception.errors import DatasetError, InvalidImageError

__all__ = ["Batch", "Collate", "PostDataset", "Sample", "usable_posts"]


class Sample(NamedTuple):
    """One post: its text, its image ``[3, S, S]`` uint8 RGB or None, and its class."""

    text: str
    image: NDArray[np.uint8] | None
    label: int


class Batch(NamedTuple):
    """Posts as a model reads them, and their classes ``[N]`` int64."""

    inputs: CrisisInputs
    labels: Tensor


def usable_posts(
    root: Path, posts: Sequence[LabelledPost], modalities: Sequence[str], *, training: bool
) -> tuple[list[LabelledPost], Counter[str]]:
    """Posts that a model of these modalities can read, and what was left out by reason.

    A model of text alone trains on every tweet once. A model of images alone needs the image; a fusion does without.

    Raises:
        DatasetError: none is left.
    """
    skipped: Counter[str] = Counter()
    kept = list(posts)
    if tuple(modalities) == ("text",) and training:
        kept = first_of_each_tweet(posts)
        skipped["further image of a tweet"] = len(posts) - len(kept)
    if tuple(modalities) == ("image",):
        kept = [post for post in posts if image_path(root, post) is not None]
        skipped["image missing"] = len(posts) - len(kept)
    if not kept:
        raise DatasetError(f"{root} has no image of its {len(posts)} posts; unpack data_image/ there")
    return kept, +skipped


class PostDataset(Dataset[Sample]):
    """Posts with their images read and resized; one that cannot be decoded counts as missing."""

    def __init__(self, root: Path, posts: Sequence[LabelledPost], *, image_size: int | None) -> None:
        self.root, self.posts, self.image_size = root, posts, image_size

    def __len__(self) -> int:
        return len(self.posts)

    def __getitem__(self, index: int) -> Sample:
        post = self.posts[index]
        return Sample(post.text, self._image(post), post.label)

    def _image(self, post: LabelledPost) -> NDArray[np.uint8] | None:
        if self.image_size is None or (path := image_path(self.root, post)) is None:
            return None
        try:
            image = read_rgb(path, oriented=True)
        except InvalidImageError:
            return None
        side = (self.image_size, self.image_size)
        return np.ascontiguousarray(cv2.resize(image, side, interpolation=cv2.INTER_AREA).transpose(2, 0, 1))


class Collate:
    """Puts samples together.

    Args:
        prepare: of the text encoder; None for a model without text.
        image_size: side ``S``; None for a model without images.
    """

    def __init__(self, prepare: Callable[[Sequence[str]], TextInputs] | None, image_size: int | None) -> None:
        self.prepare, self.image_size = prepare, image_size

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """One batch; images that are not there are black, and not marked as present."""
        texts = [sample.text for sample in samples]
        images = None
        if self.image_size is not None:
            images = torch.zeros(len(samples), 3, self.image_size, self.image_size, dtype=torch.uint8)
            for row, sample in zip(images, samples, strict=True):
                if sample.image is not None:
                    row.copy_(torch.from_numpy(sample.image))
        present = {
            "text": torch.tensor([bool(text.strip()) for text in texts]),
            "image": torch.tensor([sample.image is not None for sample in samples]),
        }
        text = None if self.prepare is None else self.prepare(texts)
        return Batch(CrisisInputs(text, images, present), torch.tensor([sample.label for sample in samples]))
