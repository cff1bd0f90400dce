"""From detections to one instance-id image in original pixels, without torch.

A detection's mask is a small grid of probabilities over its box; it is enlarged at the original image's resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.geometry import Letterbox, Size
from mca_perception.segmentation.postprocess import Window

__all__ = ["MASK_THRESHOLD", "BoxCandidates", "mask_windows", "paste_masks"]

MASK_THRESHOLD = 0.5
# Empty cells around a mask before it is enlarged, so that it can end inside its border cells.
_PADDING = 1


def mask_windows(
    masks: NDArray[np.float32], boxes: NDArray[np.float32], image_size: Size
) -> Iterator[Window]:
    """Enlarge masks to image pixels, each only where it can be above 0; equal to torchvision's pasting.

    Args:
        masks: ``[M, S, S]`` probabilities over the boxes.
        boxes: ``[M, 4]`` xyxy in image pixels.
        image_size: ``(height, width)`` of the image.

    Yields:
        For each mask its window (rows, columns) of the image and the float32 probabilities in that window.
    """
    height, width = image_size
    for mask, (left, top, right, bottom) in zip(masks, _padded_boxes(boxes, masks.shape[-1]), strict=True):
        size = (max(right - left + 1, 1), max(bottom - top + 1, 1))
        padded = np.pad(mask.astype(np.float32), _PADDING)
        rows = slice(*np.clip([top, top + size[1]], 0, height).tolist())
        columns = slice(*np.clip([left, left + size[0]], 0, width).tolist())
        enlarged = cv2.resize(padded, size, interpolation=cv2.INTER_LINEAR)
        inner = enlarged[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        yield rows, columns, np.asarray(inner, np.float32)


def _padded_boxes(boxes: NDArray[np.float32], cells: int) -> list[list[int]]:
    """Boxes of the padded masks, truncated to whole pixels; float32 throughout, so that truncation agrees."""
    centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32((cells + 2 * _PADDING) / cells)
    whole: list[list[int]] = np.concatenate([centre - half, centre + half], axis=1).astype(np.int64).tolist()
    return whole


def paste_masks(
    masks: NDArray[np.float32], boxes: NDArray[np.float32], image_size: Size
) -> NDArray[np.bool_]:
    """Masks ``[M, S, S]`` over boxes ``[M, 4]`` to whole binary masks ``[M, height, width]``; they may overlap."""
    pasted = np.zeros((len(masks), *image_size), np.bool_)
    for canvas, (rows, columns, values) in zip(pasted, mask_windows(masks, boxes, image_size), strict=True):
        canvas[rows, columns] = values > MASK_THRESHOLD
    return pasted


@dataclass(frozen=True)
class BoxCandidates:
    """Instances of one image before they compete for pixels, best first: boxes with small masks.

    Takes the place of :class:`~mca_perception.segmentation.postprocess.Candidates`, whose masks cover the whole
    network input, in :func:`~mca_perception.segmentation.postprocess.to_objects` and the evaluation.

    Attributes:
        scores: float32 ``[M]``.
        labels: int64 ``[M]``.
        boxes: float32 ``[M, 4]`` xyxy in input pixels.
        masks: float32 ``[M, S, S]`` probabilities over the boxes.
        letterbox: the transform from the original image.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    masks: NDArray[np.float32]
    letterbox: Letterbox

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score_threshold: float) -> BoxCandidates:
        """Return those with at least this score."""
        count = int((self.scores >= score_threshold).sum())
        return BoxCandidates(
            self.scores[:count], self.labels[:count], self.boxes[:count], self.masks[:count], self.letterbox
        )

    def where(self, chosen: NDArray[np.bool_]) -> BoxCandidates:
        """Return those that ``chosen [M]`` names."""
        return BoxCandidates(
            self.scores[chosen], self.labels[chosen], self.boxes[chosen], self.masks[chosen], self.letterbox
        )

    def windows(self) -> Iterator[Window]:
        """Windows of the original image with values above 0 where the mask is."""
        boxes = self.letterbox.to_image(self.boxes)
        for rows, columns, values in mask_windows(self.masks, boxes, self.letterbox.image_size):
            yield rows, columns, values - MASK_THRESHOLD
