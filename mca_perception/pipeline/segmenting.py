"""From one image to the instances in it: one look at the whole image, and on request further ones at tiles of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.manifest import SegmentationSpec
from mca_perception.deploy.session import Session
from mca_perception.geometry import Letterbox
from mca_perception.pipeline.embedding import Embedder
from mca_perception.pipeline.heads import graph_inputs, to_candidates
from mca_perception.pipeline.preprocessing import check_image
from mca_perception.segmentation.postprocess import CONTAINERS, MaskCandidates
from mca_perception.segmentation.tiling import MAX_GRID, View, join_views, tiles_of

__all__ = ["Segmenter", "Tiling", "chosen_head", "timed"]

MAX_LOOKS = 4

MAX_JOINED = 200
"""Instances kept of an image that was looked at in tiles."""


@dataclass(frozen=True)
class Tiling:
    """Further looks at crowded images.

    Attributes:
        grids: tiles per side of every further look, such as ``(2, 3)``: 4 and 9 tiles beside the whole image, each of
            which costs as much. None by default.
        from_objects: images in which the first look finds fewer objects are left at that.

    Raises:
        ValueError: a number is out of range.
    """

    grids: tuple[int, ...] = ()
    from_objects: int = 0

    def __post_init__(self) -> None:
        if any(not 2 <= grid <= MAX_GRID for grid in self.grids) or len(self.grids) > MAX_LOOKS:
            raise ValueError(
                f"tiling by grids {list(self.grids)}; give at most {MAX_LOOKS} numbers from 2 to {MAX_GRID}"
            )
        if self.from_objects < 0:
            raise ValueError(f"tiling from {self.from_objects} objects on; give 0 or more")

    @classmethod
    def parse(cls, grids: str, from_objects: int = 0) -> Tiling:
        """Tiling by a text such as ``2,3``; empty for none.

        Raises:
            ValueError: the text is something else, or a number is out of range.
        """
        words = [word.strip() for word in grids.split(",")] if grids.strip() else []
        if not all(word.isascii() and word.isdigit() for word in words):
            raise ValueError(
                f"tiles are {grids!r}; give numbers of tiles per side with commas between, such as 2,3"
            )
        return cls(tuple(int(word) for word in words), from_objects)


class Segmenter(Embedder):
    """The part of a pipeline that finds instances. Safe to call from several threads.

    Attributes:
        score_threshold: objects below it are left out; as calibrated in the bundle unless set.
        tiling: further looks at crowded images.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        sessions: Mapping[str, Session],
        segmentation: SegmentationSpec | None,
        score_threshold: float | None,
    ) -> None:
        """Take a head and a threshold.

        Raises:
            ValueError: ``score_threshold`` is out of range.
        """
        super().__init__(bundle, sessions)
        calibrated = segmentation.score_threshold if segmentation else 0.0
        threshold = calibrated if score_threshold is None else float(score_threshold)
        if not 0 <= threshold <= 1:
            raise ValueError(f"score_threshold is {threshold}; it must lie in [0, 1]")
        self._segmentation = segmentation
        self.score_threshold = threshold
        self.tiling = Tiling()

    def candidates(
        self,
        image: NDArray[np.uint8],
        *,
        score_threshold: float | None = None,
        timings_ms: dict[str, float] | None = None,
    ) -> MaskCandidates:
        """Segment an image up to non-maximum suppression; masks may overlap.

        Args:
            image: uint8 ``[H, W, 3]`` RGB.
            score_threshold: replaces the pipeline's own for this image.
            timings_ms: receives the milliseconds of the stages.

        Raises:
            InvalidImageError: as for :meth:`perceive`.
            BundleError: the bundle does not segment.
        """
        check_image(image)
        timings = {} if timings_ms is None else timings_ms
        threshold = self.score_threshold if score_threshold is None else score_threshold
        tiling = self.tiling
        if not tiling.grids:
            return self._look(image, threshold, timings)
        # A view that sees an object less surely than the threshold still says that it is there.
        floor = threshold / 2
        whole = self._look(image, floor, timings)
        if self._count(whole) < tiling.from_objects:
            return whole.above(threshold)
        views: list[View] = [[(tile, whole) for tile in tiles_of(image.shape[:2], 1)]]
        for grid in tiling.grids:
            tiles = tiles_of(image.shape[:2], grid)
            parts = [np.ascontiguousarray(image[tile.rows, tile.columns]) for tile in tiles]
            views.append(
                [(tile, self._look(part, floor, timings)) for tile, part in zip(tiles, parts, strict=True)]
            )
        with timed(timings, "postprocess"):
            labels = self.segmentation_settings.labels
            joined = join_views(
                views,
                whole.letterbox,
                whole_labels=[i for i, name in enumerate(labels) if name in CONTAINERS],
                max_objects=MAX_JOINED,
            )
            return joined.above(threshold)

    def _count(self, candidates: MaskCandidates) -> int:
        """Objects that a first look finds."""
        labels = self.segmentation_settings.labels
        sure = candidates.scores >= self.score_threshold
        held = np.array([labels[label] not in CONTAINERS for label in candidates.labels], dtype=bool)
        return int(np.count_nonzero(sure & held))

    def _look(self, image: NDArray[np.uint8], threshold: float, timings: dict[str, float]) -> MaskCandidates:
        """Candidates of one look at an image."""
        settings = self.segmentation_settings
        with timed(timings, "letterbox"):
            letterbox = Letterbox.fit(image.shape[:2], settings.input_size)
            images = self._to_tensor(letterbox.apply(image)[None])
        with timed(timings, "backbone"):
            features = self._sessions["backbone"].run({"images": images})["features"]
        with timed(timings, "segmentation"):
            inputs = graph_inputs(settings, features, images, threshold)
            output = self._sessions[settings.graph].run(inputs)
        with timed(timings, "postprocess"):
            return to_candidates(settings, output, threshold, letterbox)

    @property
    def segmentation_settings(self) -> SegmentationSpec:
        """Settings of the segmentation head in use; BundleError when the bundle does not segment."""
        return self._segmentation or self.bundle.segmentation_head()


def chosen_head(bundle: ModelBundle, head: str | None) -> SegmentationSpec | None:
    """The head in use; none in a bundle that does not segment, unless one is asked for."""
    if head is None and bundle.manifest.segmentation is None:
        return None
    return bundle.segmentation_head(head)


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[Any]:
    """Add the milliseconds of a block to a stage."""
    started = perf_counter()
    try:
        yield
    finally:
        timings[stage] = timings.get(stage, 0.0) + (perf_counter() - started) * 1000
