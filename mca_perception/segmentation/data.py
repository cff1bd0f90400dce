"""Training samples for the edge segmentation head from an ARMBench-format folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mca_perception.datasets.coco import Annotation, ImageRecord, rasterise
from mca_perception.segmentation.losses import SegmentationTargets
from mca_perception.segmentation.model import MASK_STRIDE, TOKEN_STRIDE
from mca_perception.segmentation.recipe import Augmentation

FILL = 127
# Targets are drawn at this multiple of the network's input, so that outlines are not a pixel too fat.
SUPERSAMPLING = 2
# Objects that the random window leaves smaller than this (pixels at the network's input) become clutter.
MIN_AREA = 60
MIN_KEPT_FRACTION = 0.25

Instance = tuple[NDArray[np.uint8], int]
"""Mask, 0 or 1 at ``SUPERSAMPLING`` times the network's input, and label."""


class Sample(NamedTuple):
    """``image [3, H, W]`` uint8 RGB and its targets."""

    image: Tensor
    targets: SegmentationTargets


class Scene(NamedTuple):
    """An image at the network's size and what is in it.

    Attributes:
        image: ``[3, H, W]`` uint8 RGB.
        instances: each object's own mask, uint8 ``[SUPERSAMPLING * H, SUPERSAMPLING * W]`` of 0 and 1, and its label.
    """

    image: Tensor
    instances: Iterator[Instance]


class SegmentationDataset(Dataset[Sample]):
    """Images of a split as network inputs with stride-4 targets.

    Args:
        images: records of the split.
        labels: foreground classes by name; other categories are ignored.
        input_size: (height, width) of the network.
        augmentation: ``None`` for validation: the image is letterboxed, nothing is random.
        seed: with the epoch's sampler, fixes every random draw.
    """

    def __init__(
        self,
        images: Sequence[ImageRecord],
        labels: tuple[str, ...],
        input_size: tuple[int, int],
        augmentation: Augmentation | None,
        seed: int = 0,
    ) -> None:
        self.images = images
        self.label_index = {name: index for index, name in enumerate(labels)}
        self.input_size = input_size
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        scene = self.scene(index)
        return Sample(scene.image, build_targets(scene.instances, self.input_size))

    def scene(self, index: int) -> Scene:
        """The image as the network sees it, and its objects one by one."""
        rng = np.random.default_rng((self.seed, index, torch.initial_seed() % 2**63))
        view, instances = self._view(index, rng)
        if self.augmentation is not None:
            if self.augmentation.copy_paste and rng.random() < self.augmentation.copy_paste:
                view, instances = self._paste(view, instances, rng)
            view = _change_colours(view, rng, self.augmentation.brightness)
        image_tensor = torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))
        return Scene(image_tensor, instances)

    def _view(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Iterator[Instance]]:
        """A random window of an image, ``[H, W, 3]``, and the objects in it."""
        record = self.images[index]
        image = record.read()
        transform = self._window(image.shape[:2], rng)
        return _sample_view(image, transform, self.input_size), self._draw_instances(record, transform)

    def _paste(
        self, view: NDArray[np.uint8], instances: Iterator[Instance], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], Iterator[Instance]]:
        """Paste random objects of a random scene over a view ("Simple Copy-Paste is a Strong Data Augmentation")."""
        assert self.augmentation is not None
        other, candidates = self._view(int(rng.integers(len(self.images))), rng)
        allowed = {self.label_index.get(name) for name in self.augmentation.pasted_labels}
        pasted = _choose(
            (item for item in candidates if item[1] in allowed), self.augmentation.most_pasted, rng
        )
        if not pasted:
            return view, instances
        cover = np.bitwise_or.reduce([mask for mask, _ in pasted])
        return blend(view, other, cover), chain(_visible(instances, cover), pasted)

    def _window(self, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
        """Affine map from image to network coordinates, both continuous (a pixel's centre is at index + 0.5)."""
        height, width = self.input_size
        fit = min(height / size[0], width / size[1])
        scale, angle, shift = fit, 0.0, np.zeros(2)
        mirror = 1.0
        if self.augmentation is not None:
            zoom = float(rng.uniform(*self.augmentation.scale))
            scale = fit * zoom
            angle = float(rng.uniform(-1, 1)) * self.augmentation.rotation + 180.0 * int(rng.integers(2))
            mirror = float(rng.choice([-1.0, 1.0]))
            shift = rng.uniform(-0.5, 0.5, 2) * np.array([width, height]) * abs(zoom - 1)
        radians = np.deg2rad(angle)
        linear = scale * np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
        linear[:, 0] *= mirror
        centre = np.array([size[1] / 2, size[0] / 2])
        offset = np.array([width / 2, height / 2]) + shift - linear @ centre
        return np.column_stack([linear, offset])

    def _draw_instances(self, record: ImageRecord, transform: NDArray[np.float64]) -> Iterator[Instance]:
        """Mask (0 or 1, supersampled) and label of each object that is still large enough."""
        transform = transform * SUPERSAMPLING
        area_scale = abs(float(np.linalg.det(transform[:, :2])))
        for annotation in record.annotations:
            if annotation.category not in self.label_index or annotation.is_crowd:
                continue
            mask = np.zeros([side * SUPERSAMPLING for side in self.input_size], np.uint8)
            _draw(mask, annotation, transform, record)
            smallest = max(MIN_AREA * SUPERSAMPLING**2, MIN_KEPT_FRACTION * annotation.area * area_scale)
            if cv2.countNonZero(mask) >= smallest:
                yield mask, self.label_index[annotation.category]


def _choose(items: Iterable[Instance], most: int, rng: np.random.Generator) -> list[Instance]:
    """A random number of random items, 1 to ``most``, in their order; never more than ``most`` are held at once."""
    wanted = int(rng.integers(1, most + 1))
    chosen: list[tuple[int, Instance]] = []
    for number, item in enumerate(items):
        if number < wanted:
            chosen.append((number, item))
        elif (place := int(rng.integers(number + 1))) < wanted:  # reservoir sampling
            chosen[place] = (number, item)
    return [item for _, item in sorted(chosen, key=lambda entry: entry[0])]


def blend(below: NDArray[np.uint8], above: NDArray[np.uint8], cover: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``[H, W, 3]``: ``above`` where the supersampled mask covers a pixel, else ``below``; mixed at the outline."""
    height, width = below.shape[:2]
    share = cv2.resize(cover.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)[..., None]
    return np.asarray(np.rint(below * (1 - share) + above * share), np.uint8)


def _visible(instances: Iterable[Instance], cover: NDArray[np.uint8]) -> Iterator[Instance]:
    """What objects show outside ``cover``; those that hardly show any more are left out: they become clutter."""
    for mask, label in instances:
        shown = np.asarray(mask & (cover ^ 1), np.uint8)
        smallest = max(MIN_AREA * SUPERSAMPLING**2, MIN_KEPT_FRACTION * cv2.countNonZero(mask))
        if cv2.countNonZero(shown) >= smallest:
            yield shown, label


def _pixel_transform(transform: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same map between pixel indices, as OpenCV counts them."""
    offset = transform[:, 2] + transform[:, :2] @ np.array([0.5, 0.5]) - 0.5
    return np.column_stack([transform[:, :2], offset])


def _sample_view(
    image: NDArray[np.uint8], transform: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.uint8]:
    scale = float(np.sqrt(abs(np.linalg.det(transform[:, :2]))))
    if scale < 0.5:  # shrink by area first, or bilinear sampling aliases
        width, height = (max(1, round(2 * scale * side)) for side in image.shape[1::-1])
        shrunk = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        ratio = np.array([image.shape[1] / shrunk.shape[1], image.shape[0] / shrunk.shape[0]])
        transform = np.column_stack([transform[:, :2] * ratio, transform[:, 2]])
        image = shrunk
    view = cv2.warpAffine(
        image,
        _pixel_transform(transform),
        size[::-1],
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(FILL,) * 3,
    )
    return np.asarray(view, np.uint8)


def _draw(
    canvas: NDArray[np.uint8], annotation: Annotation, transform: NDArray[np.float64], record: ImageRecord
) -> None:
    if isinstance(annotation.segmentation, list):
        for polygon in annotation.segmentation:
            points = (
                np.asarray(polygon, np.float64).reshape(-1, 2) @ transform[:, :2].T + transform[:, 2] - 0.5
            )
            cv2.fillPoly(canvas, [np.round(points * 16).astype(np.int32)], 1.0, lineType=cv2.LINE_8, shift=4)
        return
    mask = rasterise(annotation, record.height, record.width).astype(np.uint8)
    warped = cv2.warpAffine(mask, _pixel_transform(transform), canvas.shape[::-1], flags=cv2.INTER_NEAREST)
    canvas[warped > 0] = 1


def _change_colours(
    view: NDArray[np.uint8], rng: np.random.Generator, brightness: float
) -> NDArray[np.uint8]:
    if rng.random() < 0.5:
        view = view[..., rng.permutation(3)]
    gain = 1.0 + rng.uniform(-brightness, brightness)
    offset = rng.uniform(-20, 20)
    changed = cv2.convertScaleAbs(np.ascontiguousarray(view), alpha=gain, beta=max(offset, -127 * gain))
    return np.asarray(changed, np.uint8)


def build_targets(instances: Iterable[Instance], input_size: tuple[int, int]) -> SegmentationTargets:
    """Stride-4 coverage masks, centres and areas of objects; a tote keeps what the objects in it hide."""
    rows, columns = (side // MASK_STRIDE for side in input_size)
    masks: list[NDArray[np.float32]] = []
    labels: list[int] = []
    for mask, label in instances:
        covered = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
        masks.append(np.asarray(covered, np.float32))
        labels.append(label)
    centres = np.stack([_interior_point(mask) for mask in masks]) if masks else np.zeros((0, 2), np.float32)
    coverage = np.stack(masks) if masks else np.zeros((0, rows, columns), np.float32)
    return SegmentationTargets(
        masks=torch.from_numpy(coverage),
        labels=torch.tensor(labels, dtype=torch.int64),
        centres=torch.from_numpy((centres + 0.5).astype(np.float32) * (MASK_STRIDE / TOKEN_STRIDE)),
        areas=torch.from_numpy(coverage.sum(axis=(1, 2)) * (MASK_STRIDE / TOKEN_STRIDE) ** 2),
    )


def _interior_point(mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """The visible centroid (x, y) in cells; when that lies outside the object, its most interior point."""
    y, x = np.nonzero(mask > 0)
    weight = mask[y, x]
    centroid = np.array([np.average(x, weights=weight), np.average(y, weights=weight)], np.float32)
    if mask[round(centroid[1]), round(centroid[0])] >= 0.5:
        return centroid
    distance = cv2.distanceTransform((mask >= 0.5).astype(np.uint8), cv2.DIST_L2, 3) + mask
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return np.array([column, row], np.float32)


def collate(samples: list[Sample]) -> tuple[Tensor, list[SegmentationTargets]]:
    """Stack images; targets stay one object per image because their number of objects differs."""
    return torch.stack([sample.image for sample in samples]), [sample.targets for sample in samples]
