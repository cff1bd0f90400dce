"""Tiles: looking at parts of an image at a higher resolution, and joining what was seen. NumPy only.

The network sees every tile at its full input size, so small objects in crowded scenes become large enough to be told
apart. The whole image stays one of the views: objects larger than a tile are seen there alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mca_perception.geometry import Letterbox, Size
from mca_perception.segmentation.postprocess import MaskCandidates, Window

__all__ = ["MAX_GRID", "JoinedCandidates", "Tile", "View", "join_views", "tiles_of"]

MAX_GRID = 8
OVERLAP = 0.35
"""Share of a tile's side that its neighbour sees too: an object cut by one tile lies whole in the next."""

SAME_OBJECT_IOU = 0.5
BORDER = 2.0
"""Pixels of the network's input: an instance as close to an inner border of its tile has probably been cut."""


@dataclass(frozen=True)
class Tile:
    """A part of an image.

    Attributes:
        rows, columns: of the image.
        inner: whether the top, bottom, left and right border lie inside the image.
    """

    rows: slice
    columns: slice
    inner: tuple[bool, bool, bool, bool] = (False, False, False, False)


View = list[tuple[Tile, MaskCandidates]]
"""What was seen in tiles that cover the image together."""


def tiles_of(image_size: Size, grid: int) -> list[Tile]:
    """Tiles of equal size that overlap by :data:`OVERLAP`.

    Args:
        image_size: ``(height, width)``.
        grid: tiles per side, 1 to :data:`MAX_GRID`.

    Raises:
        ValueError: ``grid`` is out of range.
    """
    if not 1 <= grid <= MAX_GRID:
        raise ValueError(f"a grid of {grid} x {grid} tiles was asked for; choose 1 to {MAX_GRID}")
    rows, columns = (_parts(length, grid) for length in image_size)
    last = grid - 1
    return [
        Tile(y, x, (i > 0, i < last, j > 0, j < last))
        for i, y in enumerate(rows)
        for j, x in enumerate(columns)
    ]


def _parts(length: int, grid: int) -> list[slice]:
    side = min(length, max(1, round(length / (grid - (grid - 1) * OVERLAP))))
    starts = np.linspace(0, length - side, grid).round().astype(int)
    return [slice(int(start), int(start) + side) for start in starts]


@dataclass(frozen=True)
class JoinedCandidates:
    """Instances seen in several views, best first; a :class:`.MaskCandidates`.

    Attributes:
        scores: float32 ``[M]``.
        labels: int64 ``[M]``.
        letterbox: the whole image's.
        placed: their masks at the image's pixels.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    letterbox: Letterbox
    placed: tuple[Window, ...]

    def above(self, score_threshold: float) -> JoinedCandidates:
        """Return those with at least this score."""
        return self.where(self.scores >= score_threshold)

    def where(self, chosen: NDArray[np.bool_]) -> JoinedCandidates:
        """Return those that ``chosen [M]`` names."""
        placed = tuple(window for window, keep in zip(self.placed, chosen, strict=True) if keep)
        return JoinedCandidates(self.scores[chosen], self.labels[chosen], self.letterbox, placed)

    def windows(self) -> Iterator[Window]:
        """Give each instance's mask at the original image's pixels."""
        return iter(self.placed)


def join_views(
    views: Sequence[View], letterbox: Letterbox, *, whole_labels: Collection[int], max_objects: int
) -> JoinedCandidates:
    """One list of instances out of several views of an image.

    Instances whose masks overlap by more than :data:`SAME_OBJECT_IOU` are one object and keep the surest view's mask.
    Its score is the mean of the best view's and of the mean over all views, where a view that did not see the object
    counts as 0: what several views agree on comes first.

    Args:
        views: the first one is the whole image.
        letterbox: the whole image's.
        whole_labels: classes that are taken from the first view alone, because no tile shows them whole.
        max_objects: at most this many are kept.
    """
    found = _found(views, whole_labels)
    scores = np.array([instance.score for instance in found], np.float32)
    labels = np.array([instance.label for instance in found], np.int64)
    alive = np.ones(len(found), dtype=bool)
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if not alive[i]:
            continue
        rivals = np.flatnonzero(alive & (labels == labels[i]))
        same = [j for j in rivals if j == i or _iou(found[i], found[j]) > SAME_OBJECT_IOU]
        alive[same] = False
        kept.append(int(i))
        if labels[i] not in whole_labels:
            best = np.zeros(len(views))
            np.maximum.at(best, [found[j].view for j in same], scores[same])
            scores[i] = (best.max() + best.mean()) / 2
    chosen = np.array(kept, np.int64)
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")[:max_objects]]
    return JoinedCandidates(scores[chosen], labels[chosen], letterbox, tuple(found[i].window for i in chosen))


@dataclass(frozen=True)
class _Instance:
    view: int
    score: float
    label: int
    window: Window
    inside: NDArray[np.bool_]
    area: int


def _found(views: Sequence[View], whole_labels: Collection[int]) -> list[_Instance]:
    """Every instance of every view that is not empty and not cut by an inner border, at the image's pixels."""
    found = []
    for number, view in enumerate(views):
        for tile, candidates in view:
            reach = [BORDER / scale for scale in (candidates.letterbox.scale_y, candidates.letterbox.scale_x)]
            size = candidates.letterbox.image_size
            for score, label, (y, x, values) in zip(
                candidates.scores, candidates.labels, candidates.windows(), strict=True
            ):
                inside = values > 0
                if (
                    not inside.any()
                    or (number and label in whole_labels)
                    or _is_cut(inside, y, x, tile, size, reach)
                ):
                    continue
                placed = (_shifted(y, tile.rows.start), _shifted(x, tile.columns.start), values)
                area = int(np.count_nonzero(inside))
                found.append(_Instance(number, float(score), int(label), placed, inside, area))
    return found


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _is_cut(
    inside: NDArray[np.bool_], y: slice, x: slice, tile: Tile, size: Size, reach: Sequence[float]
) -> bool:
    """Whether an instance comes close to a border of its tile behind which the image goes on."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    gaps = (
        y.start + rows[0],
        size[0] - 1 - (y.start + rows[-1]),
        x.start + columns[0],
        size[1] - 1 - (x.start + columns[-1]),
    )
    limits = (reach[0], reach[0], reach[1], reach[1])
    return any(inner and gap <= limit for inner, gap, limit in zip(tile.inner, gaps, limits, strict=True))


def _iou(a: _Instance, b: _Instance) -> float:
    """Intersection over union of two masks."""
    (ay, ax, _), (by, bx, _) = a.window, b.window
    top, bottom = max(ay.start, by.start), min(ay.stop, by.stop)
    left, right = max(ax.start, bx.start), min(ax.stop, bx.stop)
    if top >= bottom or left >= right:
        return 0.0
    shared = np.count_nonzero(
        a.inside[top - ay.start : bottom - ay.start, left - ax.start : right - ax.start]
        & b.inside[top - by.start : bottom - by.start, left - bx.start : right - bx.start]
    )
    return shared / (a.area + b.area - shared)
