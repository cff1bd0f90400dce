"""Picks with their views for training the defect head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mca_perception.datasets.armbench_defects import DefectPick, DefectView
from mca_perception.datasets.images import read_rgb
from mca_perception.defects.clues import CLUES, read_clues
from mca_perception.defects.crops import CropSettings, crop_pick
from mca_perception.defects.model import DefectConfig
from mca_perception.errors import DatasetError, InvalidImageError

_MAX_REDRAWS = 8


class PickSample(NamedTuple):
    """One pick, or a batch with a first axis more.

    ``views`` ``[V, 3, S, S]`` uint8 with ``present`` ``[V]`` bool, image ``labels`` ``[V]`` and the pick's ``label``;
    ``clues`` ``[V, 2, S, S]`` uint8 of the views that are ``explained`` ``[V]`` bool, see :mod:`.clues`.
    """

    views: Tensor
    present: Tensor
    labels: Tensor
    label: int
    clues: Tensor
    explained: Tensor


class _Crop(NamedTuple):
    """A view as it is trained on: the crop ``[S, S, 3]``, its clues alike or None, and its label."""

    image: NDArray[np.uint8]
    clues: NDArray[np.uint8] | None
    label: int


def pick_label(labels: Sequence[int]) -> int:
    """Label of several images of one pick: the defect that most of them show, multi-pick on a tie; else nominal."""
    counts = np.bincount(np.asarray(labels), minlength=3)
    return 1 + int(counts[1:].argmax()) if counts[1:].any() else 0


def read_crop(view: DefectView, settings: CropSettings) -> NDArray[np.uint8]:
    """One view as the network sees it when nothing is random; uint8 ``[S, S, 3]``.

    Raises:
        InvalidImageError: the image cannot be read.
    """
    image = read_rgb(view.image)
    return crop_pick(image, view.mask(*image.shape[:2]), settings)


class DefectDataset(Dataset[PickSample]):
    """One pick per item, with one to ``views`` of its images in random order, changed at random.

    Args:
        picks: what to draw from.
        settings: how crops are made.
        views: images per pick at most.
        turned: whether crops are turned by any angle, or by right angles alone.
        recolour: share of the images whose hue and saturation are changed at random.
    """

    def __init__(
        self,
        picks: Sequence[DefectPick],
        settings: DefectConfig,
        *,
        views: int,
        recolour: float = 0.0,
        turned: bool = True,
    ) -> None:
        self.picks = picks
        self.settings = settings
        self.views = views
        self.recolour = recolour
        self.turned = turned

    def __len__(self) -> int:
        return len(self.picks)

    def __getitem__(self, position: int) -> PickSample:
        rng = np.random.default_rng((position, torch.initial_seed() % 2**63))
        for _ in range(_MAX_REDRAWS):
            crops = self._draw(self.picks[position], rng)
            if crops:
                return self._sample(crops)
            position = int(rng.integers(len(self.picks)))
        raise DatasetError(
            f"{_MAX_REDRAWS} picks in a row have no readable image, last {self.picks[position].id}; check the data"
        )

    def _draw(self, pick: DefectPick, rng: np.random.Generator) -> list[_Crop]:
        count = min(int(rng.integers(1, self.views + 1)), len(pick.views))
        crops = []
        for number in rng.permutation(len(pick.views))[:count]:
            view = pick.views[int(number)]
            try:
                crops.append(self._random_crop(view, rng))
            except InvalidImageError:
                continue
        return crops

    def _random_crop(self, view: DefectView, rng: np.random.Generator) -> _Crop:
        image = read_rgb(view.image)
        clues = read_clues(view, *image.shape[:2])
        mask = view.mask(*image.shape[:2])
        if mask is not None:
            size = int(rng.integers(1, 5)) * 2 - 1
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
            operation = cv2.MORPH_DILATE if rng.random() < 0.7 else cv2.MORPH_ERODE
            changed = cv2.morphologyEx(mask.astype(np.uint8), operation, kernel) > 0
            mask = changed if changed.any() else mask
        turn = _draw_turn(self.settings.crop_size, rng) if self.turned else _draw_right_turn(rng)
        crop = _exposed(turn(crop_pick(image, mask, self.settings), self.settings.background), rng)
        if clues is not None:
            clues = turn(crop_pick(clues, mask, replace(self.settings, background=0)), 0)
        return _Crop(recoloured(crop, rng) if rng.random() < self.recolour else crop, clues, view.label)

    def _sample(self, crops: list[_Crop]) -> PickSample:
        size, labels = self.settings.crop_size, [crop.label for crop in crops]
        views = torch.zeros(self.views, 3, size, size, dtype=torch.uint8)
        clues = torch.zeros(self.views, len(CLUES), size, size, dtype=torch.uint8)
        padded = torch.zeros(self.views, dtype=torch.int64)
        padded[: len(labels)] = torch.tensor(labels)
        explained = torch.zeros(self.views, dtype=torch.bool)
        for number, crop in enumerate(crops):
            views[number] = torch.from_numpy(crop.image.transpose(2, 0, 1).copy())
            if crop.clues is not None:
                clues[number] = torch.from_numpy(crop.clues[..., : len(CLUES)].transpose(2, 0, 1).copy())
                explained[number] = True
        present = torch.arange(self.views) < len(crops)
        return PickSample(views, present, padded, pick_label(labels), clues, explained)


def _draw_turn(size: int, rng: np.random.Generator) -> Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]:
    """A random turn, zoom and mirroring, for a crop of this size and the grey value around it."""
    angle, zoom = float(rng.uniform(0, 360)), float(rng.uniform(0.8, 1.1))
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2,) * 2, angle, zoom)
    mirrored = rng.random() < 0.5

    def turn(crop: NDArray[np.uint8], around: int) -> NDArray[np.uint8]:
        turned = cv2.warpAffine(crop, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(around,) * 3)
        return np.asarray(turned[:, ::-1] if mirrored else turned, np.uint8)

    return turn


def _draw_right_turn(
    rng: np.random.Generator,
) -> Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]:
    """A random turn by a multiple of 90 degrees and mirroring, which leaves every pixel as it is."""
    count, mirrored = int(rng.integers(4)), rng.random() < 0.5

    def turn(crop: NDArray[np.uint8], around: int) -> NDArray[np.uint8]:
        turned = np.rot90(crop, count)
        return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)

    return turn


def _exposed(crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random exposure and colour temperature."""
    gains = rng.uniform(0.75, 1.25) * rng.uniform(0.93, 1.07, 3)
    return np.clip(crop * gains, 0, 255).astype(np.uint8)


def recoloured(crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The same shapes in other colours: hue turned, saturation between none and a third more. Grey stays grey.

    Many colours are no second object: without this, few and plain training products teach just that.
    """
    hue, saturation, value = cv2.split(cv2.cvtColor(crop, cv2.COLOR_RGB2HSV_FULL))
    turned = hue + np.uint8(rng.integers(256))  # wraps around, as hue does
    strength = np.clip(saturation * rng.uniform(0, 1.3), 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(cv2.merge([turned, strength, value]), cv2.COLOR_HSV2RGB_FULL), np.uint8)
