"""Draws objects on their image: tinted masks, outlines, boxes and one label each."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.objects import Objects
from mca_perception.ros.conversions import products_of

__all__ = ["draw_overlay", "object_colour"]

Colour = tuple[int, int, int]

MIN_SIDE = 960

_TINT = 0.3
_LABEL_LENGTH = 16
_GOLDEN_RATIO = 0.6180339887
_FONT = cv2.FONT_HERSHEY_DUPLEX


def object_colour(object_id: int) -> Colour:
    """A bright colour (RGB) for an id; neighbouring ids lie far apart on the colour circle."""
    hue = (object_id * _GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.72, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


def draw_overlay(image: NDArray[np.uint8], objects: Objects, *, max_side: int = 1280) -> NDArray[np.uint8]:
    """Draw objects on a copy of their image.

    Args:
        image: uint8 ``[H, W, 3]`` RGB; not changed.
        objects: objects of this image.
        max_side: larger images are reduced to this longer side first, so that drawing and encoding stay
        quick. Small
            ones are enlarged somewhat, so that labels do not cover the objects.

    Returns:
        uint8 ``[h, w, 3]`` RGB.
    """
    height, width = image.shape[:2]
    longer = max(height, width)
    scale = max(min(longer, max_side), min(MIN_SIDE, max_side)) / longer
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = np.array(
        cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR),
        dtype=np.uint8,
    )
    boxes = np.round(objects.boxes * np.float32(scale)).astype(np.int32)
    identities = [int(i) for i in (objects.instance_ids if objects.track_ids is None else objects.track_ids)]
    if objects.instance_mask is not None and len(objects):
        mask = cv2.resize(objects.instance_mask, size, interpolation=cv2.INTER_NEAREST)
        _tint(canvas, np.asarray(mask, dtype=np.uint16), boxes, objects, identities)
    line = max(1, round(max(size) / 960))
    for (x1, y1, x2, y2), identity in zip(boxes.tolist(), identities, strict=True):
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), object_colour(identity), line, cv2.LINE_AA)
    _draw_labels(canvas, boxes, [_label(objects, i) for i in range(len(objects))], identities)
    return canvas


def _tint(
    canvas: NDArray[np.uint8],
    mask: NDArray[np.uint16],
    boxes: NDArray[np.int32],
    objects: Objects,
    identities: list[int],
) -> None:
    """Blend each object's colour into its pixels and draw a line around them."""
    line = max(1, round(max(canvas.shape) / 640))
    for (x1, y1, x2, y2), instance_id, identity in zip(boxes, objects.instance_ids, identities, strict=True):
        left, top = max(0, x1 - 2), max(0, y1 - 2)
        window = canvas[top : y2 + 2, left : x2 + 2]
        inside = (mask[top : y2 + 2, left : x2 + 2] == instance_id).view(np.uint8)
        if not inside.any():
            continue
        colour = object_colour(identity)
        tinted = cv2.addWeighted(window, 1 - _TINT, np.full_like(window, colour), _TINT, 0)
        cv2.copyTo(tinted, inside, window)
        outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(canvas, outlines, -1, colour, line, cv2.LINE_AA, offset=(int(left), int(top)))


def _shortened(name: str) -> str:
    """A name that fits a label; the end of an id often tells more than its middle."""
    printable = name.encode("ascii", "replace").decode()  # OpenCV's built-in font knows little more
    return printable if len(printable) <= _LABEL_LENGTH else f"{printable[:10]}..{printable[-4:]}"


def _label(objects: Objects, i: int) -> str:
    identity = objects.instance_ids[i] if objects.track_ids is None else objects.track_ids[i]
    products = products_of(objects, i)
    name, score = (
        products[0] if products else (objects.label_names[int(objects.labels[i])], objects.scores[i])
    )
    return f"{int(identity)}  {_shortened(name)}  {float(score):.2f}"


def _draw_labels(
    canvas: NDArray[np.uint8], boxes: NDArray[np.int32], labels: list[str], identities: list[int]
) -> None:
    """Put every label at its box, moved so that labels stay inside the picture and off each other."""
    height, width = canvas.shape[:2]
    font_scale = float(np.clip(max(height, width) / 2000, 0.3, 1.0))
    pad = max(2, round(6 * font_scale))
    taken: list[tuple[int, int, int, int]] = []
    for i in np.argsort(boxes[:, 1], kind="stable"):
        (text_width, text_height), _ = cv2.getTextSize(labels[i], _FONT, font_scale, 1)
        chip = (text_width + 2 * pad, text_height + 2 * pad)
        left, top = _free_place(boxes[i], chip, (width, height), taken)
        right, bottom = left + chip[0], top + chip[1]
        taken.append((left, top, right, bottom))
        colour = object_colour(identities[i])
        cv2.rectangle(canvas, (left, top), (right, bottom), colour, cv2.FILLED)
        dark = np.dot(colour, (0.299, 0.587, 0.114)) > 110
        ink = (20, 20, 20) if dark else (255, 255, 255)
        cv2.putText(canvas, labels[i], (left + pad, bottom - pad), _FONT, font_scale, ink, 1, cv2.LINE_AA)


def _free_place(
    box: NDArray[np.int32],
    chip: tuple[int, int],
    picture: tuple[int, int],
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int]:
    """First free place for a label: above the box, inside its top, then further and further down."""
    x1, y1 = int(box[0]), int(box[1])
    left = int(np.clip(x1, 0, max(0, picture[0] - chip[0])))
    lowest = max(0, picture[1] - chip[1])
    tops = [y1 - chip[1], *range(y1, max(y1 + 1, int(box[3])), chip[1])]
    for top in (int(np.clip(top, 0, lowest)) for top in tops):
        here = (left, top, left + chip[0], top + chip[1])
        if not any(_overlap(here, other) for other in taken):
            return left, top
    return left, int(np.clip(tops[0], 0, lowest))


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
