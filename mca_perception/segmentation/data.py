"""Training samples for the edge segmentation head from an ARMBench-format folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

FILL = 127
# Targets are drawn at this multiple of the network's input, so that outlines are not a pixel too fat.
SUPERSAMPLING = 2
# Objects that the random window leaves smaller than this (pixels at the network's input) become clutter.
MIN_AREA = 60
MIN_KEPT_FRACTION = 0.25


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training scene.

    Attributes:
        scale: range of the zoom relative to "whole image fits".
        rotation: largest in-plane rotation in degrees, besides the 180 degree turns.
        brightness: largest relative change of exposure.
    """

    scale: tuple[float, float] = (0.85, 1.3)
    rotation: float = 8.0
    brightness: float = 0.3


class Sample(NamedTuple):
    """``image [3, H, W]`` uint8 RGB and its targets."""

    image: Tensor
    targets: SegmentationTargets


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
        record = self.images[index]
        image = record.read()
        rng = np.random.default_rng((self.seed, index, torch.initial_seed() % 2**63))
        transform = self._window(image.shape[:2], rng)
        view = _sample_view(image, transform, self.input_size)
        instances, labels = self._draw_instances(record, transform)
        if self.augmentation is not None:
            view = _change_colours(view, rng, self.augmentation.brightness)
        image_tensor = torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))
        return Sample(image_tensor, build_targets(instances, labels))

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

    def _draw_instances(
        self, record: ImageRecord, transform: NDArray[np.float64]
    ) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Instance-id image at network size (0 = background, k = k-th kept object) and the kept objects' labels."""
        transform = transform * SUPERSAMPLING
        canvas = np.zeros([side * SUPERSAMPLING for side in self.input_size], np.uint16)
        labels: list[int] = []
        area_scale = abs(float(np.linalg.det(transform[:, :2])))
        for annotation in record.annotations:
            if annotation.category not in self.label_index or annotation.is_crowd:
                continue
            before = canvas.copy()
            _draw(canvas, annotation, transform, len(labels) + 1, record)
            area = int((canvas == len(labels) + 1).sum())
            if area < max(MIN_AREA * SUPERSAMPLING**2, MIN_KEPT_FRACTION * annotation.area * area_scale):
                canvas = before
            else:
                labels.append(self.label_index[annotation.category])
        return canvas, np.asarray(labels, np.int64)


def _pixel_transform(transform: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same map between pixel indices, as OpenCV counts them."""
    offset = transform[:, 2] + transform[:, :2] @ np.array([0.5, 0.5]) - 0.5
    return np.column_stack([transform[:, :2], offset])


def _sample_view(
    image: NDArray[np.uint8], transform: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.uint8]:
    scale = float(np.sqrt(abs(np.linalg.det(transform[:, :2]))))
    if scale < 0.5:  # shrink by area first, or bilinear sampling aliases
        shrunk = np.asarray(
            cv2.resize(image, None, fx=2 * scale, fy=2 * scale, interpolation=cv2.INTER_AREA), np.uint8
        )
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
    canvas: NDArray[np.uint16],
    annotation: Annotation,
    transform: NDArray[np.float64],
    value: int,
    record: ImageRecord,
) -> None:
    if isinstance(annotation.segmentation, list):
        for polygon in annotation.segmentation:
            points = (
                np.asarray(polygon, np.float64).reshape(-1, 2) @ transform[:, :2].T + transform[:, 2] - 0.5
            )
            cv2.fillPoly(
                canvas, [np.round(points * 16).astype(np.int32)], float(value), lineType=cv2.LINE_8, shift=4
            )
        return
    mask = rasterise(annotation, record.height, record.width).astype(np.uint8)
    warped = cv2.warpAffine(mask, _pixel_transform(transform), canvas.shape[::-1], flags=cv2.INTER_NEAREST)
    canvas[warped > 0] = value


def _change_colours(
    view: NDArray[np.uint8], rng: np.random.Generator, brightness: float
) -> NDArray[np.uint8]:
    if rng.random() < 0.5:
        view = view[..., rng.permutation(3)]
    gain = 1.0 + rng.uniform(-brightness, brightness)
    offset = rng.uniform(-20, 20)
    changed = cv2.convertScaleAbs(np.ascontiguousarray(view), alpha=gain, beta=max(offset, -127 * gain))
    return np.asarray(changed, np.uint8)


def build_targets(instances: NDArray[np.uint16], labels: NDArray[np.int64]) -> SegmentationTargets:
    """Stride-4 coverage masks, centres and areas from an instance-id image (ids 1..M, supersampled)."""
    count = len(labels)
    height, width = instances.shape
    side = MASK_STRIDE * SUPERSAMPLING
    rows, columns = height // side, width // side
    cell = (np.arange(height)[:, None] // side) * columns + np.arange(width)[None] // side
    flat = instances.astype(np.int64) * (rows * columns) + cell
    counts = np.bincount(flat.ravel(), minlength=(count + 1) * rows * columns)
    masks = counts.reshape(count + 1, rows, columns)[1 : count + 1].astype(np.float32) / side**2
    centres = np.stack([_interior_point(mask) for mask in masks]) if count else np.zeros((0, 2), np.float32)
    return SegmentationTargets(
        masks=torch.from_numpy(masks),
        labels=torch.from_numpy(labels),
        centres=torch.from_numpy((centres + 0.5).astype(np.float32) * (MASK_STRIDE / TOKEN_STRIDE)),
        areas=torch.from_numpy(masks.sum(axis=(1, 2)) * (MASK_STRIDE / TOKEN_STRIDE) ** 2),
    )


def _interior_point(mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """The visible centroid (x, y) in cells; when that lies outside the object, its most interior point."""
    y, x = np.nonzero(mask > 0)
    weight = mask[y, x]
    centroid = np.array([np.average(x, weights=weight), np.average(y, weights=weight)], np.float32)
    if mask[round(centroid[1]), round(centroid[0])] >= 0.5:
        return centroid
    distance = cv2.distanceTransform((mask >= 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return np.array([column, row], np.float32)


def collate(samples: list[Sample]) -> tuple[Tensor, list[SegmentationTargets]]:
    """Stack images; targets stay one object per image because their number of objects differs."""
    return torch.stack([sample.image for sample in samples]), [sample.targets for sample in samples]
