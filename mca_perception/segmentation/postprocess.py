"""From the segmentation graph's outputs to one instance-id image in original pixels. NumPy and OpenCV only."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mca_perception.geometry import Letterbox, Size
from mca_perception.objects import Objects

__all__ = [
    "CONTAINERS",
    "Candidates",
    "MaskCandidates",
    "Window",
    "compose_instance_mask",
    "compose_windows",
    "resize_masks",
    "select_instances",
    "to_objects",
]

MIN_AREA = 16
"""Instances with fewer visible pixels in the original image are dropped."""

CONTAINERS = frozenset({"Tote"})
"""Classes of what holds the objects. They are found and scored like others, but take no pixel from an object."""


Window = tuple[slice, slice, NDArray[np.float32]]
"""Rows and columns of an image, and values there that are above 0 inside an instance."""


class MaskCandidates(Protocol):
    """Instances of one image before they compete for pixels, best first, however their masks are stored."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """``[M]``."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """``[M]``."""
        ...

    @property
    def letterbox(self) -> Letterbox:
        """The transform from the original image."""
        ...

    def above(self, score_threshold: float) -> MaskCandidates:
        """Return those with at least this score."""
        ...

    def where(self, chosen: NDArray[np.bool_]) -> MaskCandidates:
        """Return those that ``chosen [M]`` names."""
        ...

    def windows(self) -> Iterator[Window]:
        """Give each instance's mask at the original image's pixels."""
        ...


@dataclass(frozen=True)
class Candidates:
    """Instances of one image before they compete for pixels, best first.

    Attributes:
        scores: float32 ``[M]``.
        labels: int64 ``[M]``.
        mask_logits: float32 ``[M, h, w]`` over the letterboxed input; above 0 is inside.
        letterbox: the transform from the original image.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    mask_logits: NDArray[np.float32]
    letterbox: Letterbox

    def above(self, score_threshold: float) -> Candidates:
        """Return those with at least this score."""
        count = int((self.scores >= score_threshold).sum())
        return Candidates(self.scores[:count], self.labels[:count], self.mask_logits[:count], self.letterbox)

    def where(self, chosen: NDArray[np.bool_]) -> Candidates:
        """Return those that ``chosen [M]`` names."""
        return Candidates(self.scores[chosen], self.labels[chosen], self.mask_logits[chosen], self.letterbox)

    def windows(self) -> Iterator[Window]:
        """Give each instance's mask logits at the original image's pixels."""
        return resize_masks(self.mask_logits, self.letterbox)


def select_instances(
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    mask_logits: NDArray[np.float32],
    *,
    score_threshold: float,
    nms_iou: float,
    max_objects: int,
) -> NDArray[np.int64]:
    """Keep confident instances and remove duplicates by greedy mask NMS within each class.

    Args:
        scores: ``[K]`` probabilities.
        labels: ``[K]`` class indices.
        mask_logits: ``[K, h, w]`` low-resolution mask logits; a pixel is inside where its logit is above 0.
        score_threshold: instances below it are dropped.
        nms_iou: an instance is dropped when its mask overlaps a better one of the same class by more than
            this IoU.
        max_objects: at most this many are kept.

    Returns:
        int64 ``[M]`` indices of the kept instances, best score first. Instances with an empty mask are
        dropped.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= score_threshold]
    masks = (mask_logits[order] > 0).reshape(len(order), math.prod(mask_logits.shape[1:])).astype(np.float32)
    areas = masks.sum(axis=1)
    order, masks, areas = order[areas > 0], masks[areas > 0], areas[areas > 0]

    alive = np.ones(len(order), dtype=bool)
    for i in range(len(order)):
        if not alive[i]:
            continue
        rivals = i + 1 + np.flatnonzero(alive[i + 1 :] & (labels[order[i + 1 :]] == labels[order[i]]))
        # Not a matrix product: NumPy's wakes BLAS threads that then wait actively, OpenCV's takes ten times as long.
        shared = np.einsum("rp,p->r", masks[rivals], masks[i])
        alive[rivals] = shared <= nms_iou * (areas[i] + areas[rivals] - shared)
    kept: NDArray[np.int64] = order[alive][:max_objects].astype(np.int64)
    return kept


def compose_instance_mask(
    mask_logits: NDArray[np.float32], letterbox: Letterbox, image_size: Size, *, min_area: int = MIN_AREA
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.float32]]:
    """Resize masks to original pixels and give every pixel to the instance with the highest logit above 0.

    Args:
        mask_logits: ``[M, h, w]`` logits over the letterboxed network input.
        letterbox: the transform that made the network input.
        image_size: ``(height, width)`` of the original image.
        min_area: instances left with fewer visible pixels are dropped.

    Returns:
        ``instance_mask`` uint16 ``[H, W]``, in which instance ``m`` has pixel value ``m + 1``; ``areas``
        int64 ``[M]`` in visible pixels, 0 for dropped instances; ``boxes`` float32 ``[M, 4]`` xyxy tight
        around the visible pixels.

    Raises:
        ValueError: the letterbox belongs to another image size, or there are more than 65,535 instances.
    """
    if letterbox.image_size != tuple(image_size):
        raise ValueError(f"letterbox was made for {letterbox.image_size}, not for image_size {image_size}")
    return compose_windows(resize_masks(mask_logits, letterbox), image_size, min_area=min_area)


def compose_windows(
    windows: Iterable[Window], image_size: Size, *, min_area: int = MIN_AREA
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.float32]]:
    """Give every pixel to the instance with the highest value above 0 there.

    Args:
        windows: the masks of ``M`` instances.
        image_size: ``(height, width)`` of the image.
        min_area: instances left with fewer visible pixels are dropped.

    Returns:
        What :func:`compose_instance_mask` returns.

    Raises:
        ValueError: there are more than 65,535 instances.
    """
    instance_mask = np.zeros(image_size, dtype=np.uint16)
    best = np.zeros(image_size, dtype=np.float32)
    places = []
    for m, (y, x, values) in enumerate(windows):
        if m == np.iinfo(np.uint16).max:
            raise ValueError("the instances do not fit a uint16 instance mask; lower max_objects")
        places.append((y, x))
        wins = values > best[y, x]
        np.copyto(best[y, x], values, where=wins)
        instance_mask[y, x][wins] = m + 1

    areas = np.zeros(len(places), dtype=np.int64)
    boxes = np.zeros((len(places), 4), dtype=np.float32)
    for m, (y, x) in enumerate(places):
        visible = instance_mask[y, x] == m + 1
        area = np.count_nonzero(visible)
        if area < max(1, min_area):
            instance_mask[y, x][visible] = 0
            continue
        areas[m] = area
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        boxes[m] = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        boxes[m] += (x.start, y.start, x.start, y.start)
    return instance_mask, areas, boxes


def resize_masks(mask_logits: NDArray[np.float32], letterbox: Letterbox) -> Iterator[Window]:
    """Interpolate mask logits bilinearly at the original image's pixels, only where they can be positive.

    Args:
        mask_logits: ``[M, h, w]`` logits over the letterboxed network input.
        letterbox: the transform that made the network input.

    Yields:
        For each instance its window (rows, columns) of the original image and the logits in that window.
    """
    mask_height, mask_width = mask_logits.shape[1:]
    (height, width), (input_height, input_width) = letterbox.image_size, letterbox.input_size
    rows = _Axis(height, letterbox.scale_y, letterbox.pad_top, mask_height, input_height)
    columns = _Axis(width, letterbox.scale_x, letterbox.pad_left, mask_width, input_width)
    for logits in mask_logits:
        inside = logits > 0
        y, x = rows.window(inside.any(axis=1)), columns.window(inside.any(axis=0))
        stretched = np.ascontiguousarray(rows.interpolate(logits, y).T)
        yield y, x, columns.interpolate(stretched, x).T


def to_objects(
    candidates: MaskCandidates,
    label_names: tuple[str, ...],
    *,
    min_area: int = MIN_AREA,
    classes: Collection[str] = (),
) -> Objects:
    """Let candidates compete for pixels; those left with fewer than ``min_area`` and containers are dropped.

    Args:
        candidates: of one image.
        label_names: names of their labels.
        min_area: in pixels.
        classes: labels that take part; empty for all.
    """
    letterbox = candidates.letterbox
    wanted = set(classes or label_names) - CONTAINERS
    held = np.array([label_names[label] in wanted for label in candidates.labels], dtype=bool)
    contents = candidates.where(held)
    instance_mask, areas, boxes = compose_windows(contents.windows(), letterbox.image_size, min_area=min_area)
    kept = np.flatnonzero(areas)
    return Objects(
        image_size=letterbox.image_size,
        boxes=boxes[kept],
        scores=contents.scores[kept],
        labels=contents.labels[kept],
        label_names=label_names,
        instance_mask=instance_mask,
        instance_ids=(kept + 1).astype(np.uint16),
    )


class _Axis:
    """Bilinear interpolation along one axis, from mask cells to image pixels."""

    def __init__(self, pixels: int, scale: float, padding: int, cells: int, input_length: int) -> None:
        centres = (np.arange(pixels) + 0.5) * scale + padding
        self._positions = centres * (cells / input_length) - 0.5
        clipped = np.clip(self._positions, 0, cells - 1)
        self._lower = clipped.astype(np.int64)
        self._upper = np.minimum(self._lower + 1, cells - 1)
        self._fraction = (clipped - self._lower).astype(np.float32)[:, None]

    def window(self, occupied: NDArray[np.bool_]) -> slice:
        """Pixels that can be positive: those of the occupied cells and of one more on each side."""
        used = np.flatnonzero(occupied)
        if len(used) == 0:
            return slice(0, 0)
        start, stop = np.searchsorted(self._positions, [used[0] - 1, used[-1] + 1 + 1e-9])
        return slice(int(start), int(stop))

    def interpolate(self, values: NDArray[np.float32], pixels: slice) -> NDArray[np.float32]:
        """Values ``[cells, L]`` at some pixels, ``[P, L]``."""
        lower = values[self._lower[pixels]]
        between = values[self._upper[pixels]]
        between -= lower
        between *= self._fraction[pixels]
        between += lower
        return between
