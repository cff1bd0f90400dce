"""Query / reference pairs for training the identification head from an ARMBench-format folder of picks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mca_perception.datasets.armbench import IdentificationIndex, Pick, rasterise_polygons
from mca_perception.datasets.images import read_rgb
from mca_perception.identification.crops import crop_object, crop_reference, mask_box


class Pair(NamedTuple):
    """``query`` and ``reference`` ``[3, S, S]`` uint8 of one product, and the product's index."""

    query: Tensor
    reference: Tensor
    product: int


class PairDataset(Dataset[Pair]):
    """One pair per pick: a random view of the pick against a random reference photo of its product.

    Args:
        index: the folder.
        picks: the picks to draw from; picks without references or views must have been left out.
        crop_size: side of the crops in pixels.
        margin: context around the object, as at run time.
    """

    def __init__(
        self, index: IdentificationIndex, picks: list[Pick], *, crop_size: int, margin: float
    ) -> None:
        self.picks = picks
        self.references = index.references
        self.crop_size = crop_size
        self.margin = margin
        names = sorted({pick.product_id for pick in picks})
        self.product_index = {name: position for position, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.picks)

    def __getitem__(self, position: int) -> Pair:
        pick = self.picks[position]
        rng = np.random.default_rng((position, torch.initial_seed() % 2**63))
        # The view in the container is what a robot asks about most: it is drawn half of the time.
        views = sorted(pick.views)
        view = (
            "PickRGB"
            if "PickRGB" in pick.views and rng.random() < 0.5
            else views[int(rng.integers(len(views)))]
        )
        query = self.query_crop(pick, view, rng)
        references = self.references[pick.product_id]
        reference = self.reference_crop(references[int(rng.integers(len(references)))])
        return Pair(
            _to_tensor(_change(query, rng)),
            _to_tensor(_change(reference, rng)),
            self.product_index[pick.product_id],
        )

    def reference_crop(self, path: Path) -> NDArray[np.uint8]:
        """A reference photo as the network sees it."""
        return crop_reference(read_rgb(path), size=self.crop_size, margin=self.margin)

    def query_crop(self, pick: Pick, view: str, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
        """One view of a pick, cut out along its annotated outline; with ``rng``, the outline is disturbed."""
        image = read_rgb(pick.views[view])
        height, width = image.shape[:2]
        polygons = pick.polygons.get(view)
        mask = rasterise_polygons(polygons, height, width) if polygons else None
        if mask is None or not mask.any():
            return crop_object(
                image, np.array([0, 0, width, height], np.float32), size=self.crop_size, margin=0.0
            )
        if rng is not None:
            mask = _disturb(mask, rng)
        return crop_object(image, mask_box(mask), size=self.crop_size, mask=mask, margin=self.margin)


class ContainerSampler(Sampler[list[int]]):
    """Batches made of whole containers: products that lie side by side are each other's hard negatives.

    A batch takes containers in random order until it is full; the same product may appear twice (the loss takes such
    pairs out of the negatives).
    """

    def __init__(self, picks: list[Pick], batch_size: int, seed: int) -> None:
        groups: dict[frozenset[str], list[int]] = {}
        for position, pick in enumerate(picks):
            groups.setdefault(frozenset(pick.container), []).append(position)
        self.groups = list(groups.values())
        self.batch_size = batch_size
        self.count = len(picks) // batch_size
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        order = [
            position for group in self.rng.permutation(len(self.groups)) for position in self.groups[group]
        ]
        for start in range(0, self.count * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size]


def _disturb(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Grow, shrink or smooth a mask a little: masks at run time are predicted, not drawn."""
    size = int(rng.integers(1, 3)) * 2 + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    operation = (cv2.MORPH_DILATE, cv2.MORPH_ERODE, cv2.MORPH_OPEN, cv2.MORPH_CLOSE)[int(rng.integers(4))]
    changed = cv2.morphologyEx(mask.astype(np.uint8), operation, kernel) > 0
    return changed if changed.any() else mask


def _change(crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random in-plane turn, zoom, exposure and colour temperature. Never mirrored: print reads one way."""
    size = crop.shape[0]
    turn = cv2.getRotationMatrix2D(
        ((size - 1) / 2,) * 2, float(rng.uniform(0, 360)), float(rng.uniform(0.8, 1.1))
    )
    turned = cv2.warpAffine(crop, turn, (size, size), flags=cv2.INTER_LINEAR, borderValue=(127, 127, 127))
    gains = rng.uniform(0.75, 1.25) * rng.uniform(0.93, 1.07, 3)
    return np.clip(turned * gains, 0, 255).astype(np.uint8)


def _to_tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
