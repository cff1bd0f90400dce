"""Ten ways to lay out the main panel of a pack.

Each draws on an RGB uint8 image filled with the main colour. ``rng`` holds what line-mates share, ``variant``
what tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from mca_perception.datasets.synth import textures as tx
from mca_perception.datasets.synth.design import KRAFT, Design
from mca_perception.datasets.synth.textures import Color, Image


def rect(image: Image, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
    """Fill an axis-aligned rectangle, cut off at the image border."""
    image[max(0, round(y0)) : max(0, round(y1)), max(0, round(x0)) : max(0, round(x1))] = color


def words(image: Image, design: Design, text: str, box: tx.Box, color: Color) -> None:
    """The brand's lettering, outlined for some brands."""
    outline = (
        tx.mix(color, (0, 0, 0), 0.75) if design.art_seed % 5 == 0 and tx.luminance(color) > 0.5 else None
    )
    tx.draw_text(image, text, box, color, font=design.font, weight=design.weight, outline=outline)


def _names(image: Image, design: Design, top: float, color: Color, background: Color | None = None) -> None:
    """Brand, title and adjective block starting at ``top`` (share of the height)."""
    height, width = image.shape[:2]
    if background is not None:
        rect(image, 0, height * (top - 0.02), width, height * (top + 0.36), background)
    words(
        image, design, design.brand, (width * 0.08, height * top, width * 0.92, height * (top + 0.15)), color
    )
    tx.draw_text(
        image,
        design.title,
        (width * 0.12, height * (top + 0.17), width * 0.88, height * (top + 0.26)),
        color,
        font=design.font % 4,
        weight=600,
    )
    tx.draw_text(
        image,
        design.adjective,
        (width * 0.2, height * (top + 0.275), width * 0.8, height * (top + 0.33)),
        color,
        font=0,
        weight=300,
    )


def _size_tag(image: Image, design: Design, color: Color) -> None:
    height, width = image.shape[:2]
    tx.draw_text(
        image,
        design.size_text,
        (width * 0.62, height * 0.91, width * 0.95, height * 0.97),
        color,
        weight=700,
        align=1.0,
    )


def _band(image: Image, design: Design, rng: np.random.Generator, variant: np.random.Generator) -> None:
    height, width = image.shape[:2]
    _names(image, design, 0.07, design.ink)
    split = rng.uniform(0.46, 0.55)
    rect(image, 0, height * split, width, height * (split + 0.03), design.accent)
    rect(image, 0, height * (split + 0.03), width, height, design.second)
    tx.draw_picture(
        image,
        variant,
        design.picture,
        (width * 0.15, height * (split + 0.06), width * 0.85, height * 0.93),
        (design.accent, design.paper, design.main),
    )
    _size_tag(image, design, tx.readable_on(design.second, variant))


def _diagonal(image: Image, design: Design, rng: np.random.Generator, variant: np.random.Generator) -> None:
    height, width = image.shape[:2]
    low, high = rng.uniform(0.35, 0.6), rng.uniform(0.6, 0.9)
    shape = np.array([[0, height * high], [width, height * low], [width, height], [0, height]]).astype(
        np.int32
    )
    cv2.fillPoly(image, [shape], design.second, cv2.LINE_AA)
    cv2.polylines(image, [shape[:2]], False, design.accent, max(2, width // 25), cv2.LINE_AA)
    _names(image, design, 0.06, design.ink)
    tx.draw_logo(
        image,
        variant,
        design.logo,
        width * 0.72,
        height * 0.8,
        min(width, height) * 0.15,
        design.accent,
        design.paper,
    )
    _size_tag(image, design, tx.readable_on(design.second, variant))


def _patterned(image: Image, design: Design, rng: np.random.Generator, variant: np.random.Generator) -> None:
    height, width = image.shape[:2]
    tx.draw_pattern(image, rng, design.pattern, design.second, min(width, height) * rng.uniform(0.08, 0.3))
    top = rng.uniform(0.15, 0.5)
    _names(image, design, top, tx.readable_on(design.paper, variant), design.paper)
    rect(image, 0, height * (top + 0.34), width, height * (top + 0.37), design.accent)


def _pictured(image: Image, design: Design, rng: np.random.Generator, variant: np.random.Generator) -> None:
    height, width = image.shape[:2]
    image[:] = tx.gradient(
        height, width, design.main, tx.mix(design.main, design.second, 0.7), rng.uniform(0, 3)
    )
    tx.draw_picture(
        image,
        variant,
        design.picture,
        (width * 0.06, height * 0.36, width * 0.94, height * 0.95),
        (design.accent, design.second, design.paper),
    )
    words(image, design, design.brand, (width * 0.08, height * 0.05, width * 0.92, height * 0.2), design.ink)
    tx.draw_text(
        image,
        design.title,
        (width * 0.1, height * 0.22, width * 0.9, height * 0.32),
        design.ink,
        font=design.font % 4,
        weight=600,
    )
    _size_tag(image, design, design.ink)


def _minimal(image: Image, design: Design, rng: np.random.Generator, variant: np.random.Generator) -> None:
    height, width = image.shape[:2]
    x, y = rng.uniform(0.1, 0.35), rng.uniform(0.1, 0.6)
    words(
        image,
        design,
        design.brand,
        (width * x, height * y, width * (x + 0.5), height * (y + 0.12)),
        design.ink,
    )
    tx.draw_text(
        image,
        design.title,
        (width * x, height * (y + 0.16), width * (x + 0.4), height * (y + 0.22)),
        design.ink,
        weight=300,
        align=0.0,
    )
    rect(image, width * x, height * (y + 0.26), width * (x + 0.2), height * (y + 0.28), design.accent)
    if variant.random() < 0.5:
        tx.draw_logo(
            image,
            variant,
            design.logo,
            width * 0.8,
            height * 0.85,
            min(width, height) * 0.09,
            design.accent,
            design.main,
        )


def _kraft(image: Image, design: Design, rng: np.random.Generator, variant: np.random.Generator) -> None:
    height, width = image.shape[:2]
    tone = np.array(tx.mix(KRAFT, (120, 90, 60), float(rng.uniform(0, 0.5))), np.float32)
    grain = tx.noise(rng, height, width, 1) * 3 + tx.noise(rng, height, width, 5) * 3
    image[:] = tx.clip8(tone + grain[..., None])
    if rng.random() < 0.7:
        middle, half = height * 0.5, height * rng.uniform(0.06, 0.11)
        strip = image[round(middle - half) : round(middle + half)]
        strip[:] = tx.clip8(strip * 0.8 + np.array((214, 190, 140)) * 0.2)
    if variant.random() < 0.75:
        x, y = width * variant.uniform(0.06, 0.35), height * variant.uniform(0.05, 0.4)
        w, h = width * 0.55, height * 0.42
        rect(image, x, y, x + w, y + h, (244, 243, 240))
        words(
            image, design, design.brand, (x + w * 0.06, y + h * 0.06, x + w * 0.7, y + h * 0.25), (25, 25, 30)
        )
        tx.draw_lines(
            image, variant, (x + w * 0.06, y + h * 0.32, x + w * 0.9, y + h * 0.58), (30, 30, 30), 3
        )
        tx.draw_barcode(image, variant, (x + w * 0.06, y + h * 0.62, x + w * 0.9, y + h * 0.95))
    else:
        words(
            image,
            design,
            design.brand,
            (width * 0.15, height * 0.3, width * 0.85, height * 0.55),
            (70, 50, 35),
        )


def _striped(image: Image, design: Design, rng: np.random.Generator, variant: np.random.Generator) -> None:
    height, width = image.shape[:2]
    tx.draw_pattern(image, rng, 2, design.second, min(width, height) * rng.uniform(0.12, 0.5))
    radius = min(width, height) * 0.42
    centre = (width // 2, round(height * rng.uniform(0.4, 0.6)))
    cv2.circle(image, centre, round(radius), design.paper, -1, cv2.LINE_AA)
    cv2.circle(image, centre, round(radius * 0.93), design.accent, max(1, round(radius * 0.06)), cv2.LINE_AA)
    ink = tx.readable_on(design.paper, variant)
    cx, cy = centre
    words(
        image,
        design,
        design.brand,
        (cx - radius * 0.75, cy - radius * 0.35, cx + radius * 0.75, cy + radius * 0.1),
        ink,
    )
    tx.draw_text(
        image,
        design.title,
        (cx - radius * 0.6, cy + radius * 0.2, cx + radius * 0.6, cy + radius * 0.45),
        design.accent,
        weight=600,
    )
    tx.draw_logo(
        image, variant, design.logo, cx, cy - radius * 0.62, radius * 0.2, design.accent, design.paper
    )


def _framed(image: Image, design: Design, rng: np.random.Generator, variant: np.random.Generator) -> None:
    height, width = image.shape[:2]
    short = min(height, width)
    for inset, color in ((0.05, design.second), (0.09, design.paper if rng.random() < 0.6 else design.main)):
        rect(image, short * inset, short * inset, width - short * inset, height - short * inset, color)
    base = tuple(int(v) for v in image[height // 2, width // 2])
    ink = tx.readable_on((base[0], base[1], base[2]), variant)
    tx.draw_logo(
        image, variant, design.logo, width * 0.5, height * 0.32, short * 0.18, design.accent, design.second
    )
    _names(image, design, 0.54, ink)


def _illustrated(
    image: Image, design: Design, rng: np.random.Generator, variant: np.random.Generator
) -> None:
    height, width = image.shape[:2]
    tx.draw_picture(
        image,
        variant,
        design.picture,
        (0, 0, width, height * 0.62),
        (design.second, design.accent, design.paper),
    )
    _names(image, design, 0.62, tx.readable_on(design.paper, variant), design.paper)


def _burst(image: Image, design: Design, rng: np.random.Generator, variant: np.random.Generator) -> None:
    height, width = image.shape[:2]
    tx.draw_pattern(image, rng, 8, tx.mix(design.main, design.second, 0.6), 20)
    badge = tx.star(width * 0.5, height * 0.5, min(width, height) * 0.48, 14, 0.82)
    cv2.fillPoly(image, [badge], design.accent, cv2.LINE_AA)
    ink = tx.readable_on(design.accent, variant)
    words(image, design, design.brand, (width * 0.18, height * 0.36, width * 0.82, height * 0.52), ink)
    tx.draw_text(
        image, design.title, (width * 0.2, height * 0.55, width * 0.8, height * 0.64), ink, weight=700
    )


Layout = Callable[[Image, Design, np.random.Generator, np.random.Generator], None]
LAYOUTS: tuple[Layout, ...] = (
    _band,
    _diagonal,
    _patterned,
    _pictured,
    _minimal,
    _kraft,
    _striped,
    _framed,
    _illustrated,
    _burst,
)
