"""ByteTrack (Zhang et al. 2022): confident boxes are matched to tracks first, then the others to what is left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mca_perception.geometry import box_iou
from mca_perception.tracking.kalman import BoxFilter

__all__ = ["ByteTracker"]


@dataclass
class _Track:
    identity: int
    label: int
    filter: BoxFilter
    lost: int = 0


class ByteTracker:
    """Gives the same object the same id in frame after frame. Not safe to use from several threads.

    Example:
        >>> tracker = ByteTracker()  # doctest: +SKIP
        >>> tracker.update(objects.boxes, objects.scores, objects.labels)  # doctest: +SKIP
        array([1, 2, 3])
    """

    def __init__(
        self,
        *,
        confident: float = 0.6,
        first_iou: float = 0.2,
        second_iou: float = 0.5,
        keep_lost: int = 30,
    ) -> None:
        """Start without tracks.

        Args:
            confident: boxes with at least this score are matched first.
            first_iou: least overlap of a confident box with the predicted one of its track.
            second_iou: likewise of the other boxes, which see only tracks that are left and were seen last time.
            keep_lost: frames for which an object that is not seen keeps its id.

        Raises:
            ModuleNotFoundError: scipy is not installed.
        """
        from scipy.optimize import linear_sum_assignment

        self._assign = linear_sum_assignment
        self._confident = confident
        self._least = (first_iou, second_iou)
        self._keep_lost = keep_lost
        self._tracks: list[_Track] = []
        self._next = 1

    def reset(self) -> None:
        """Forget all tracks; ids that were given are not given again."""
        self._tracks.clear()

    def update(
        self, boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Match the boxes of the next frame.

        Args:
            boxes: ``[N, 4]`` xyxy in pixels.
            scores: ``[N]`` 0..1.
            labels: ``[N]``; an object keeps its class.

        Returns:
            int64 ``[N]``, the track of each box. A box that fits none starts one: whatever is reported has an id.
        """
        for track in self._tracks:
            track.filter.predict()
            track.lost += 1
        identities = np.zeros(len(boxes), np.int64)
        confident = scores >= self._confident
        for round_, chosen in enumerate((confident, ~confident)):
            seen_before = [t for t in self._tracks if t.lost and (round_ == 0 or t.lost == 1)]
            self._match(np.flatnonzero(chosen), seen_before, boxes, labels, self._least[round_], identities)
        for i in np.flatnonzero(identities == 0):
            self._tracks.append(_Track(self._next, int(labels[i]), BoxFilter(boxes[i])))
            identities[i] = self._next
            self._next += 1
        self._tracks = [track for track in self._tracks if track.lost <= self._keep_lost]
        return identities

    def _match(
        self,
        candidates: NDArray[np.int64],
        tracks: list[_Track],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        least_iou: float,
        identities: NDArray[np.int64],
    ) -> None:
        if not len(candidates) or not tracks:
            return
        overlaps = box_iou(np.stack([track.filter.box for track in tracks]), boxes[candidates])
        overlaps[np.array([track.label for track in tracks])[:, None] != labels[candidates][None]] = 0.0
        for row, column in zip(*self._assign(overlaps, maximize=True), strict=True):
            if overlaps[row, column] < least_iou:
                continue
            track, i = tracks[row], candidates[column]
            track.filter.update(boxes[i])
            track.lost = 0
            identities[i] = track.identity
