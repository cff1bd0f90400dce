"""Queries and references for training identification: views of picks against reference photos of their products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mca_perception.datasets.armbench import VIEWS, Pick, rasterise_polygons
from mca_perception.datasets.images import read_rgb
from mca_perception.identification.crops import BACKGROUND, crop_object, crop_reference, mask_box
from mca_perception.identification.recipe import CropAugmentation, IdentificationRecipe
from mca_perception.identification.views import BEFORE_PICK


class Pair(NamedTuple):
    """One pick and references of its product.

    Attributes:
        query: ``[V, 3, S, S]`` uint8, one crop per slot; grey where a view is missing or left out.
        present: ``[V]`` bool, at least one true.
        single: slot of the view that is also compared by itself.
        reference: ``[R, 3, S, S]`` uint8.
        product: the product's index.
    """

    query: Tensor
    present: Tensor
    single: int
    reference: Tensor
    product: int


class PairDataset(Dataset[Pair]):
    """One pair per pick: views of the pick, each left out at random, against random reference photos of its product.

    Args:
        references: reference photos by product, of every product in ``picks``.
        picks: the picks to draw from, at least one view each.
        recipe: sizes, number of views and references, augmentation.
    """

    def __init__(
        self, references: Mapping[str, Sequence[Path]], picks: list[Pick], recipe: IdentificationRecipe
    ) -> None:
        self.picks = picks
        self.references = references
        self.recipe = recipe
        names = sorted({pick.product_id for pick in picks})
        self.product_index = {name: position for position, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.picks)

    def __getitem__(self, position: int) -> Pair:
        pick, size = self.picks[position], self.recipe.crop_size
        rng = np.random.default_rng((position, torch.initial_seed() % 2**63))
        views, single = self._draw_views(pick, rng)
        queries = np.full((self.recipe.views, size, size, 3), BACKGROUND, np.uint8)
        present = np.zeros(self.recipe.views, bool)
        for slot, view in views.items():
            queries[slot] = self._changed(self.query_crop(pick, view, rng), rng)
            present[slot] = True
        references = [
            self._changed(self.reference_crop(path), rng) for path in self._draw_references(pick, rng)
        ]
        return Pair(
            _to_tensor(queries),
            torch.from_numpy(present),
            single,
            _to_tensor(np.stack(references)),
            self.product_index[pick.product_id],
        )

    def _draw_views(self, pick: Pick, rng: np.random.Generator) -> tuple[dict[int, str], int]:
        """Names of the views to use by slot, and the slot of the one that is also used by itself."""
        if self.recipe.views == 1:
            return {0: _preferred(sorted(pick.views), rng)}, 0
        # The slots after the pick are drawn anew: any camera may be the one that is missing at run time.
        after = [name for name in VIEWS[1:] if name in pick.views]
        chosen = sorted(rng.permutation(len(after))[: self.recipe.views - 1])
        shown = dict(enumerate((after[i] for i in chosen), start=1))
        if BEFORE_PICK in pick.views:
            shown[0] = BEFORE_PICK
        kept = [slot for slot in sorted(shown) if rng.random() >= self.recipe.view_dropout]
        kept = kept or [sorted(shown)[int(rng.integers(len(shown)))]]
        views = {slot: shown[slot] for slot in kept}
        single = _preferred(list(views.values()), rng)
        return views, next(slot for slot, name in views.items() if name == single)

    def _draw_references(self, pick: Pick, rng: np.random.Generator) -> list[Path]:
        """Reference photos of the pick's product, other than the pick's own images, repeated where there are few."""
        own = set(pick.views.values())
        known = self.references[pick.product_id]
        photos = [path for path in known if path not in own] or known
        count = self.recipe.references
        order = [int(i) for i in rng.permutation(len(photos))]
        first = self.recipe.first_reference
        if first is not None and len(photos) > 1:
            order.remove(0)
            order = [0, *order] if rng.random() < first else [*order, 0]
        return [photos[order[i % len(order)]] for i in range(count)]

    def reference_crop(self, path: Path) -> NDArray[np.uint8]:
        """A reference photo as the network sees it."""
        return crop_reference(read_rgb(path), size=self.recipe.crop_size, margin=self.recipe.margin)

    def query_crop(self, pick: Pick, view: str, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
        """One view of a pick, cut out along its annotated outline; with ``rng``, the outline is disturbed."""
        image = read_rgb(pick.views[view])
        height, width = image.shape[:2]
        size = self.recipe.crop_size
        polygons = pick.polygons.get(view)
        mask = rasterise_polygons(polygons, height, width) if polygons else None
        if mask is None or not mask.any():
            return crop_object(image, np.array([0, 0, width, height], np.float32), size=size, margin=0.0)
        if rng is not None:
            mask = _disturb(mask, rng)
        return crop_object(image, mask_box(mask), size=size, mask=mask, margin=self.recipe.margin)

    def _changed(self, crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        return _change(crop, self.recipe.augmentation, rng)


class ContainerSampler(Sampler[list[int]]):
    """Batches made of whole containers: products that lie side by side are each other's hard negatives.

    A batch takes containers in random order until it is full, the picks of each in random order; the same product may
    appear twice (the loss takes such pairs out of the negatives).
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
        groups = [self.groups[i] for i in self.rng.permutation(len(self.groups))]
        order = [group[i] for group in groups for i in self.rng.permutation(len(group))]
        for start in range(0, self.count * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size]


def _disturb(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Grow, shrink or smooth a mask a little: masks at run time are predicted, not drawn."""
    size = int(rng.integers(1, 3)) * 2 + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    operation = (cv2.MORPH_DILATE, cv2.MORPH_ERODE, cv2.MORPH_OPEN, cv2.MORPH_CLOSE)[int(rng.integers(4))]
    changed = cv2.morphologyEx(mask.astype(np.uint8), operation, kernel) > 0
    return changed if changed.any() else mask


def _preferred(views: list[str], rng: np.random.Generator) -> str:
    """One of the views: half of the time that in the container, which a robot asks about most."""
    if BEFORE_PICK in views and rng.random() < 0.5:
        return BEFORE_PICK
    return views[int(rng.integers(len(views)))]


def _change(
    crop: NDArray[np.uint8], settings: CropAugmentation, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Random in-plane turn, zoom, exposure and colour temperature. Never mirrored: print reads one way."""
    size = crop.shape[0]
    angle = float(rng.uniform(-settings.rotation, settings.rotation))
    turn = cv2.getRotationMatrix2D(((size - 1) / 2,) * 2, angle, float(rng.uniform(*settings.zoom)))
    turn[:, 2] += rng.uniform(-settings.shift, settings.shift, 2) * size
    border = (BACKGROUND,) * 3
    turned = cv2.warpAffine(crop, turn, (size, size), flags=cv2.INTER_LINEAR, borderValue=border)
    gains = rng.uniform(0.75, 1.25) * rng.uniform(0.93, 1.07, 3)
    return np.clip(turned * gains, 0, 255).astype(np.uint8)


def _to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """``[K, S, S, 3]`` to ``[K, 3, S, S]``."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
