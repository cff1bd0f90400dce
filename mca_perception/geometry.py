"""Image geometry shared by training, the pipeline and the readers.

Coordinates are continuous pixel-edge coordinates: pixel ``(row, column)`` covers
``[column, column + 1) x [row, row + 1)``, so a box ``xyxy`` has exclusive right and bottom edges and maps
between resolutions by a plain scale and shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_PIXELS", "PADDING_VALUE", "Letterbox", "Size", "box_iou"]

Size = tuple[int, int]
"""``(height, width)`` in pixels."""

MAX_PIXELS = 50_000_000
"""Largest image (height x width) that any part of the library accepts."""

PADDING_VALUE = 127
"""Grey level of letterbox borders; close to zero after normalisation."""

HALVED_FROM = 6
"""Images are halved before they are reduced, while they are so many times as large: what is left to average is then
at least three pixels wide."""


def box_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of all pairs of boxes.

    Args:
        a: ``[N, 4]`` xyxy.
        b: ``[M, 4]`` xyxy.

    Returns:
        float32 ``[N, M]``; 0 where a box has no area.
    """
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), np.float32)


def _resize_smoothly(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Area averaging, or bilinear interpolation when enlarging.

    Large images are halved first: OpenCV averages whole pixels several times faster than parts of them. That differs
    from averaging at once by less than half a grey level in the mean.
    """
    height, width = size
    while min(image.shape[0] / height, image.shape[1] / width) >= HALVED_FROM and not any(
        length % 2 for length in image.shape[:2]
    ):
        image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    interpolation = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), image.dtype)


@dataclass(frozen=True)
class Letterbox:
    """The transform that fits an image into a network input: aspect ratio kept, centred, padded with grey.

    Build it with :meth:`fit`. ``resized_size`` is rounded to whole pixels, so each axis has its own exact
    scale.

    Example:
        >>> letterbox = Letterbox.fit(image_size=(480, 640), input_size=(256, 256))
        >>> letterbox.resized_size, letterbox.pad_top, letterbox.pad_left
        ((192, 256), 32, 0)
    """

    image_size: Size
    input_size: Size
    resized_size: Size
    pad_left: int
    pad_top: int

    @classmethod
    def fit(cls, image_size: Size, input_size: Size) -> Letterbox:
        """Compute the transform.

        Args:
            image_size: ``(height, width)`` of the original image.
            input_size: ``(height, width)`` of the network input.

        Raises:
            ValueError: a size is not positive.
        """
        (height, width), (input_height, input_width) = image_size, input_size
        if min(height, width, input_height, input_width) < 1:
            raise ValueError(f"image_size {image_size} and input_size {input_size} must be at least 1 x 1")
        scale = min(input_height / height, input_width / width)
        resized_height = min(input_height, max(1, round(height * scale)))
        resized_width = min(input_width, max(1, round(width * scale)))
        return cls(
            image_size=(height, width),
            input_size=(input_height, input_width),
            resized_size=(resized_height, resized_width),
            pad_left=(input_width - resized_width) // 2,
            pad_top=(input_height - resized_height) // 2,
        )

    @property
    def scale(self) -> float:
        """Nominal scale, before the resized size was rounded."""
        return min(self.input_size[0] / self.image_size[0], self.input_size[1] / self.image_size[1])

    @property
    def scale_x(self) -> float:
        """Exact horizontal scale: input pixels per image pixel."""
        return self.resized_size[1] / self.image_size[1]

    @property
    def scale_y(self) -> float:
        """Exact vertical scale: input pixels per image pixel."""
        return self.resized_size[0] / self.image_size[0]

    def apply(
        self, image: NDArray[np.uint8], *, padding: int = PADDING_VALUE, nearest: bool = False
    ) -> NDArray[np.uint8]:
        """Resize and pad.

        Args:
            image: ``[H, W]`` or ``[H, W, C]`` of ``image_size``.
            padding: value of the border.
            nearest: take the nearest pixel, for label images; otherwise area averaging (in steps from large
                images), or bilinear interpolation when enlarging.

        Returns:
            ``[h, w]`` or ``[h, w, C]`` of ``input_size``, same dtype.

        Raises:
            ValueError: the image does not have ``image_size``.
        """
        if image.shape[:2] != self.image_size:
            raise ValueError(f"image is {image.shape[:2]}, this letterbox was made for {self.image_size}")
        height, width = self.resized_size
        output = np.full((*self.input_size, *image.shape[2:]), padding, dtype=image.dtype)
        inner = output[self.pad_top : self.pad_top + height, self.pad_left : self.pad_left + width]
        if nearest:
            resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        else:
            resized = _resize_smoothly(image, self.resized_size)
        inner[...] = resized.reshape(inner.shape)
        return output

    def to_input(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes ``[N, 4]`` xyxy from original image pixels to input pixels."""
        scale, shift = self._scale_and_shift()
        return (np.asarray(boxes, dtype=np.float32) * scale + shift).astype(np.float32)

    def to_image(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes ``[N, 4]`` xyxy from input pixels to original image pixels, clipped to the image."""
        scale, shift = self._scale_and_shift()
        height, width = self.image_size
        mapped = (np.asarray(boxes, dtype=np.float32) - shift) / scale
        return np.clip(mapped, 0, np.array([width, height, width, height])).astype(np.float32)

    def _scale_and_shift(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        scale = np.array([self.scale_x, self.scale_y] * 2)
        shift = np.array([self.pad_left, self.pad_top] * 2, dtype=np.float64)
        return scale, shift
