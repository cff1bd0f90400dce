"""Sizes, geometry and textures of each kind of procedural product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from mca_perception.datasets.synth import labels
from mca_perception.datasets.synth import textures as tx
from mca_perception.datasets.synth.design import Design
from mca_perception.datasets.synth.shapes import BoxModel, RoundModel, Surface
from mca_perception.datasets.synth.sheets import (
    SheetModel,
    height_levels,
    outline_card,
    outline_pouch,
    outline_tube,
    pillow,
)
from mca_perception.datasets.synth.textures import Field, Image

if TYPE_CHECKING:
    from mca_perception.datasets.synth.catalogue import Product

_TEXELS = 272
Size = tuple[float, float, float]


def draw_side(rng: np.random.Generator) -> float:
    """Square root of a product's front area, cm."""
    return float(np.clip(np.exp(rng.normal(np.log(10.2), 0.35)), 4.5, 16.0))


def draw_size(rng: np.random.Generator, kind: str) -> Size:
    """Width, height and depth in cm, typical of the kind."""
    side = draw_side(rng)
    aspect = float(rng.uniform(1.0, 1.9))
    if kind == "box":
        flat = float(rng.uniform(0.15, 0.8))
        width, height = side / aspect**0.5, side * aspect**0.5
        if rng.random() < 0.35:
            width, height = height, width
        return width, height, side * flat
    if kind == "book":
        aspect = float(rng.uniform(1.25, 1.55))
        side *= 1.15
        return side / aspect**0.5, side * aspect**0.5, float(rng.uniform(0.8, 3.2))
    if kind in ("bottle", "can", "jar"):
        slender = {
            "bottle": rng.uniform(2.2, 4.0),
            "can": rng.uniform(1.3, 2.4),
            "jar": rng.uniform(0.6, 1.3),
        }[kind]
        diameter = float(np.clip(side * 0.92 / slender**0.5, 3.0, 11.0))
        return diameter, diameter * float(slender), diameter
    if kind == "tube":
        aspect = float(rng.uniform(2.2, 3.8))
        return side * 0.85 / aspect**0.5, side * 0.85 * aspect**0.5, side * 0.85 / aspect**0.5 * 0.62
    if kind == "blister":
        return side / aspect**0.5, side * aspect**0.5, float(rng.uniform(0.8, 2.5))
    if kind == "mailer":
        side *= 1.15
        return side / aspect**0.5, side * aspect**0.5, float(rng.uniform(0.8, 2.5))
    return side * 1.1 / aspect**0.5, side * 1.1 * aspect**0.5, side * float(rng.uniform(0.12, 0.4))


def build(product: Product) -> BoxModel | RoundModel | SheetModel:
    """Model of a procedural product."""
    rng = np.random.default_rng(product.model_seed)
    kind, design, size = product.kind, product.design, product.size
    if kind == "box":
        return _box(design, size, rng)
    if kind == "book":
        return _book(design, size)
    if kind in ("bottle", "can", "jar"):
        return _round(kind, design, size, rng)
    return _sheet(kind, design, size, rng)


def _texels(width: float, height: float, longest: float) -> tuple[int, int]:
    """Texture (rows, columns) of a face, ``_TEXELS`` along the product's longest side."""
    scale = _TEXELS / longest
    return max(12, round(height * scale)), max(12, round(width * scale))


def _worn(face: Image) -> Surface:
    """A face of a carton; its edges are rubbed lighter."""
    worn = np.asarray(cv2.add(face, np.full_like(face, 24)), np.uint8)
    worn[2:-2, 2:-2] = face[2:-2, 2:-2]
    return Surface.of(worn)


def _box(design: Design, size: Size, rng: np.random.Generator) -> BoxModel:
    width, height, depth = size
    longest = max(size)
    front = labels.front_face(design, *_texels(width, height, longest))
    back = front if rng.random() < 0.3 else labels.back_face(design, *_texels(width, height, longest))
    side = _worn(labels.side_face(design, *_texels(depth, height, longest)))
    top = _worn(labels.side_face(design, *_texels(width, depth, longest), along=False))
    return BoxModel(
        size,
        {"front": _worn(front), "back": _worn(back), "left": side, "right": side, "top": top, "bottom": top},
        float(rng.choice([0.05, 0.3, 0.8])),
    )


def _book(design: Design, size: Size) -> BoxModel:
    width, height, depth = size
    longest = max(size)
    pages_side = Surface.of(labels.page_edges(design, *_texels(depth, height, longest)))
    pages_end = Surface.of(labels.page_edges(design, *_texels(width, depth, longest)))
    return BoxModel(
        size,
        {
            "front": Surface.of(labels.cover_face(design, *_texels(width, height, longest))),
            "back": Surface.of(labels.back_face(design, *_texels(width, height, longest))),
            "left": Surface.of(labels.side_face(design, *_texels(depth, height, longest))),
            "right": pages_side,
            "top": pages_end,
            "bottom": pages_end,
        },
        0.4,
    )


def _profile(kind: str, radius: float, rng: np.random.Generator) -> tuple[Field, float, float]:
    """64 radii from top to bottom, end of the cap and start of the label (shares of the length)."""
    share = np.linspace(0, 1, 64, dtype=np.float32)
    if kind == "can":
        rim = np.clip(np.minimum(share, 1 - share) / 0.05, 0, 1)
        return (radius * (0.9 + 0.1 * rim)).astype(np.float32), 0.03, 0.05
    if kind == "jar":
        cap = float(rng.uniform(0.2, 0.32))
        body = np.where(share < cap, rng.uniform(0.9, 1.0), 1.0) * np.where(share > 0.96, 0.95, 1.0)
        return (radius * body).astype(np.float32), cap, cap + 0.06
    cap, shoulder = float(rng.uniform(0.1, 0.2)), float(rng.uniform(0.26, 0.42))
    neck = float(rng.uniform(0.3, 0.75))
    rise = np.clip((share - cap) / (shoulder - cap), 0, 1)
    rise = rise * rise * (3 - 2 * rise)
    waist = 1 - rng.uniform(0, 0.1) * np.sin(
        np.clip((share - shoulder) / (1 - shoulder), 0, 1) * np.pi * rng.integers(1, 3)
    )
    body = (neck + (1 - neck) * rise) * waist * np.where(share > 0.97, 0.94, 1.0)
    return (
        (radius * np.where(share < cap, neck * rng.uniform(0.85, 1.1), body)).astype(np.float32),
        cap,
        shoulder,
    )


def _round(kind: str, design: Design, size: Size, rng: np.random.Generator) -> RoundModel:
    diameter, length, _ = size
    radii, cap_end, label_start = _profile(kind, diameter / 2, rng)
    circumference = np.pi * diameter
    rows, columns = _texels(circumference, length, max(length, circumference * 0.75))
    body = (
        tx.mix(design.second, design.paper, float(rng.choice([0.0, 0.5, 1.0])))
        if kind != "can"
        else (196, 198, 202)
    )
    image = np.empty((rows, columns, 3), np.uint8)
    image[:] = body
    first, last = (
        round(rows * label_start),
        round(rows * (0.95 if kind != "bottle" else rng.uniform(0.88, 0.96))),
    )
    image[first:last] = labels.wrap_label(design, last - first, columns)
    cap_color = (205, 206, 210) if kind == "can" else design.accent
    cap_rows = round(rows * cap_end)
    image[:cap_rows] = cap_color
    if kind != "can":
        image[:cap_rows, :: max(3, columns // 60)] = tx.mix(cap_color, (0, 0, 0), 0.3)
    cap = _disc(cap_color, design, rng, metal=kind == "can")
    return RoundModel(
        length,
        radii,
        Surface.of(image),
        Surface.of(cap),
        Surface.of(_disc(body, design, rng, metal=kind == "can")),
        float(rng.uniform(0.3, 1.0)),
    )


def _disc(color: tx.Color, design: Design, rng: np.random.Generator, *, metal: bool) -> Image:
    """Lid or bottom of a round body, square texture."""
    size = 112
    image = np.empty((size, size, 3), np.uint8)
    image[:] = color
    centre = (size // 2, size // 2)
    for radius, share in ((52, -0.25), (46, 0.15), (40, 0.0)):
        tone = tx.mix(color, (0, 0, 0) if share < 0 else (255, 255, 255), abs(share))
        cv2.circle(image, centre, radius, tone, -1, cv2.LINE_AA)
    if metal:
        cv2.ellipse(image, (56, 44), (9, 15), 0, 0, 360, (150, 152, 156), -1, cv2.LINE_AA)
        cv2.ellipse(image, (56, 38), (5, 6), 0, 0, 360, (90, 92, 96), -1, cv2.LINE_AA)
        cv2.circle(image, (56, 62), 4, (120, 122, 126), -1, cv2.LINE_AA)
    elif rng.random() < 0.5:
        tx.draw_text(
            image,
            design.brand,
            (26, 44, 86, 68),
            tx.readable_on(color, rng),
            font=design.font % 4,
            weight=700,
        )
    else:
        tx.draw_logo(
            image,
            rng,
            design.logo,
            56,
            56,
            22,
            tx.mix(color, (255, 255, 255), 0.5),
            tx.mix(color, (0, 0, 0), 0.4),
        )
    return image


def _sheet(kind: str, design: Design, size: Size, rng: np.random.Generator) -> SheetModel:
    width, height, thickness = size
    rows, columns = _texels(width, height, max(width, height))
    gloss, crumple = float(rng.uniform(0.25, 0.9)), float(rng.uniform(0.15, 0.5))
    if kind == "blister":
        front, height_map = _blister_front(design, rows, columns, rng)
        alpha, crumple = outline_card(rng, rows, columns), 0.03
        back = labels.back_face(design, rows, columns)
    elif kind == "tube":
        alpha, height_map = outline_tube(rows, columns, float(rng.uniform(0.35, 0.7)))
        front, back = _tube_art(design, rows, columns, True), _tube_art(design, rows, columns, False)
        crumple *= 0.4
    elif kind == "mailer":
        alpha, height_map = outline_pouch(rng, rows, columns), pillow(rows, columns, 0.35)
        front, back = _mailer_art(design, rows, columns, rng)
        crumple = float(rng.uniform(0.4, 0.9))
    else:
        alpha, height_map = outline_pouch(rng, rows, columns), pillow(rows, columns, 0.6)
        front, back = _bag_art(design, rows, columns, True), _bag_art(design, rows, columns, False)
    film = (
        float(rng.uniform(0.4, 1.0)) if rng.random() < {"mailer": 0.6, "pouch": 0.25}.get(kind, 0.0) else 0.0
    )
    front_surface = Surface.of(np.dstack([front, alpha]))
    return SheetModel(
        size,
        front_surface,
        Surface.of(np.dstack([back, alpha[:, ::-1]])),
        height_levels(height_map * np.float32(thickness), front_surface),
        gloss,
        crumple,
        kind == "blister",
        film,
    )


def _bag_art(design: Design, rows: int, columns: int, front: bool) -> Image:
    image = labels.front_face(design, rows, columns) if front else labels.back_face(design, rows, columns)
    seam = max(4, rows // 18)
    for part in (image[:seam], image[rows - seam :]):
        part[:] = tx.mix(design.main, (235, 235, 235), 0.35)
        part[:, ::3] = tx.mix(design.main, (40, 40, 40), 0.3)
    return image


def _tube_art(design: Design, rows: int, columns: int, front: bool) -> Image:
    body = round(rows * 0.79)
    image = np.empty((rows, columns, 3), np.uint8)
    image[:] = design.accent
    sideways = np.random.default_rng(design.art_seed).random() < 0.6
    shape = (columns, body) if sideways else (body, columns)
    art = labels.front_face(design, *shape) if front else labels.back_face(design, *shape)
    image[:body] = np.rot90(art) if sideways else art
    image[: max(3, rows // 30), ::2] = tx.mix(design.main, (200, 200, 200), 0.5)
    image[round(rows * 0.83) :, :: max(3, columns // 14)] = tx.mix(design.accent, (0, 0, 0), 0.3)
    return image


def _mailer_art(design: Design, rows: int, columns: int, rng: np.random.Generator) -> tuple[Image, Image]:
    """Poly mailer with a shipping label, or a folded garment in a clear bag."""
    image = np.empty((rows, columns, 3), np.uint8)
    variant = np.random.default_rng(design.variant_seed)
    if rng.random() < 0.45:
        image[:] = tx.hsv(rng.random(), rng.uniform(0, 0.15), rng.choice([0.12, 0.55, 0.8, 0.93]))
    else:
        image[:] = design.main
        if rng.random() < 0.55:
            tx.draw_pattern(
                image,
                rng,
                int(rng.choice([0, 1, 2, 2, 3, 6])),
                design.second,
                columns * rng.uniform(0.06, 0.25),
            )
        fold = int(columns * rng.uniform(0.3, 0.7))
        cv2.line(image, (fold, 0), (fold, rows), tx.mix(design.main, (0, 0, 0), 0.4), 2, cv2.LINE_AA)
    back = image.copy()
    w, h = columns * variant.uniform(0.3, 0.5), rows * variant.uniform(0.16, 0.28)
    x, y = variant.uniform(0.1, 0.9) * (columns - w), variant.uniform(0.1, 0.9) * (rows - h)
    cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), (242, 242, 240), -1)
    tx.draw_text(
        image,
        design.brand,
        (x + w * 0.06, y + h * 0.06, x + w * 0.9, y + h * 0.32),
        (20, 20, 20),
        font=design.font,
        weight=design.weight,
    )
    tx.draw_barcode(image, variant, (x + w * 0.06, y + h * 0.4, x + w * 0.94, y + h * 0.94))
    return image, back


def _blister_front(design: Design, rows: int, columns: int, rng: np.random.Generator) -> tuple[Image, Field]:
    """Card with a clear dome over the goods; heights 0..1."""
    image = labels.front_face(design, rows, columns)
    x0, x1 = round(columns * rng.uniform(0.1, 0.2)), round(columns * rng.uniform(0.8, 0.9))
    y0, y1 = round(rows * rng.uniform(0.4, 0.5)), round(rows * rng.uniform(0.86, 0.94))
    well = image[y0:y1, x0:x1]
    well[:] = tx.mix(design.paper, (120, 120, 125), 0.35)
    variant = np.random.default_rng(design.variant_seed)
    item = tx.hsv(variant.random(), variant.uniform(0, 0.9), variant.uniform(0.15, 0.9))
    h, w = well.shape[:2]
    tx.draw_picture(
        image,
        variant,
        int(rng.choice([0, 3, 3, 4])),
        (x0 + w * 0.1, y0 + h * 0.08, x1 - w * 0.1, y1 - h * 0.08),
        (item, design.accent, tx.mix(item, (0, 0, 0), 0.4)),
    )
    cv2.rectangle(image, (x0, y0), (x1, y1), tx.mix(design.paper, (255, 255, 255), 0.6), 2, cv2.LINE_AA)
    dome = np.zeros((rows, columns), np.float32)
    dome[y0:y1, x0:x1] = pillow(y1 - y0, x1 - x0, 0.25)
    return image, dome
