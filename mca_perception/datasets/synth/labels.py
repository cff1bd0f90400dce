"""The flat art of each printed face of a product, RGB uint8 ``[height, width, 3]``."""

from __future__ import annotations

import cv2
import numpy as np

from mca_perception.datasets.synth import textures as tx
from mca_perception.datasets.synth.design import KRAFT, Design
from mca_perception.datasets.synth.layouts import LAYOUTS, rect, words
from mca_perception.datasets.synth.textures import Image


def front_face(design: Design, height: int, width: int) -> Image:
    """Main panel of a pack, uint8 ``[height, width, 3]``."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = design.main
    LAYOUTS[design.layout](
        image, design, np.random.default_rng(design.art_seed), np.random.default_rng(design.variant_seed)
    )
    return image


def back_face(design: Design, height: int, width: int) -> Image:
    """Information panel: small print, a table, a barcode."""
    rng = np.random.default_rng(design.variant_seed + 1)
    image = np.empty((height, width, 3), np.uint8)
    base = design.main if design.layout != 5 else KRAFT
    image[:] = base
    ink = tx.readable_on(base, rng)
    short = min(height, width)
    if rng.random() < 0.5:
        margin = short * 0.07
        rect(image, margin, margin, width - margin, height - margin, design.paper)
        ink = tx.readable_on(design.paper, rng)
    words(
        image, design, design.brand, (width * 0.12, height * 0.09, width * 0.7, height * 0.2), design.second
    )
    tx.draw_lines(
        image, rng, (width * 0.12, height * 0.25, width * 0.88, height * 0.55), ink, max(3, int(height / 30))
    )
    tx.draw_barcode(image, rng, (width * 0.52, height * 0.72, width * 0.9, height * 0.92))
    x0, y0, x1, y1 = (round(v) for v in (width * 0.12, height * 0.6, width * 0.45, height * 0.92))
    cv2.rectangle(image, (x0, y0), (x1, y1), ink, 1)
    for row in range(1, 6):
        y = y0 + (y1 - y0) * row // 6
        cv2.line(image, (x0, y), (x1, y), ink, 1)
    return image


def side_face(design: Design, height: int, width: int, *, along: bool = True) -> Image:
    """Narrow panel: brand and title, written along the long side when ``along``."""
    rng = np.random.default_rng(design.variant_seed + 2)
    turned = along and height > width
    h, w = (width, height) if turned else (height, width)
    image = np.empty((h, w, 3), np.uint8)
    base = design.second if design.layout in (0, 1, 6) else design.main if design.layout != 5 else KRAFT
    image[:] = base
    style = np.random.default_rng(design.art_seed + 2)
    if style.random() < 0.35:
        tx.draw_pattern(image, style, design.pattern, tx.mix(base, design.accent, 0.4), h * 0.3)
    if style.random() < 0.5:
        rect(image, 0, h * 0.8, w, h, design.accent)
    ink = tx.readable_on(base, rng)
    words(image, design, design.brand, (w * 0.06, h * 0.2, w * 0.42, h * 0.75), ink)
    tx.draw_text(
        image, design.title, (w * 0.48, h * 0.28, w * 0.76, h * 0.7), ink, font=design.font % 4, weight=400
    )
    if style.random() < 0.5:
        tx.draw_barcode(image, rng, (w * 0.8, h * 0.15, w * 0.97, h * 0.75))
    else:
        tx.draw_logo(
            image, style, design.logo, w * 0.88, h * 0.45, min(h * 0.3, w * 0.08), design.accent, base
        )
    return np.ascontiguousarray(np.rot90(image)) if turned else image


def cover_face(design: Design, height: int, width: int) -> Image:
    """Front cover of a book."""
    rng, variant = np.random.default_rng(design.art_seed), np.random.default_rng(design.variant_seed)
    image = tx.gradient(
        height, width, design.main, design.second if rng.random() < 0.5 else design.main, rng.uniform(0, 3)
    )
    if rng.random() < 0.4:
        tx.draw_pattern(
            image, rng, design.pattern, tx.mix(design.main, design.accent, 0.5), width * rng.uniform(0.1, 0.4)
        )
    top = 0.38 if rng.random() < 0.6 else 0.05
    tx.draw_picture(
        image,
        variant,
        design.picture,
        (width * 0.08, height * top, width * 0.92, height * (top + 0.52)),
        (design.second, design.accent, design.paper),
    )
    title = design.title.upper().split()
    start = 0.07 if top > 0.2 else 0.62
    for row, word in enumerate(title[:3]):
        y = height * (start + 0.11 * row)
        tx.draw_text(
            image,
            word,
            (width * 0.1, y, width * 0.9, y + height * 0.095),
            design.ink,
            font=design.font,
            weight=design.weight,
        )
    tx.draw_text(
        image,
        f"{design.brand} {design.adjective}",
        (width * 0.2, height * 0.92, width * 0.8, height * 0.97),
        design.ink,
    )
    return image


def page_edges(design: Design, height: int, width: int) -> Image:
    """Paper block of a book seen from its edge; sheets run along the long side."""
    rng = np.random.default_rng(design.variant_seed + 3)
    lines = rng.normal(0, 9, (min(height, width), 1, 1)) + 226
    tint = np.array([1.0, 0.985, 0.93])
    image = np.broadcast_to(lines * tint, (min(height, width), max(height, width), 3))
    image = tx.clip8(image)
    return np.ascontiguousarray(np.rot90(image)) if height > width else np.ascontiguousarray(image)


def wrap_label(design: Design, height: int, width: int) -> Image:
    """Label around a cylinder: front panel in the middle, information panel on the seam."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = design.main
    panel = round(width * 0.46)
    back = back_face(design, height, panel)
    seam = panel // 2
    image[:, :seam] = back[:, panel - seam :]
    image[:, width - (panel - seam) :] = back[:, : panel - seam]
    left = (width - panel) // 2
    image[:, left : left + panel] = front_face(design, height, panel)
    return image
