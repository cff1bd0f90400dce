"""Loose contents of deconstructed packages, and intact products that look like two or like an opened one."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from mca_perception.datasets.synth import textures as tx
from mca_perception.datasets.synth.catalogue import Model
from mca_perception.datasets.synth.defect_items import Drawn, Item
from mca_perception.datasets.synth.defect_openings import paper_surface, plain_surface
from mca_perception.datasets.synth.shapes import BoxModel, RoundModel, Surface
from mca_perception.datasets.synth.sheets import SheetModel, height_levels, outline_pouch, pillow
from mca_perception.datasets.synth.textures import Field, Image

DISGUISES = ("twin_pack", "window", "crumpled", "labels", "glare")


def loose_part(size: tuple[float, float, float], rng: np.random.Generator) -> Item:
    """Something unprinted out of a package of ``size`` cm: a leaflet, a moulded part, a garment or a cylinder."""
    width, height, _ = (side * float(rng.uniform(0.45, 0.8)) for side in size)
    color = tx.hsv(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.1, 0.95))
    kind = int(rng.integers(4))
    if kind == 0:
        page = paper_surface(rng)
        faces = dict.fromkeys(("front", "back", "left", "right", "top", "bottom"), page)
        return Item(BoxModel((width, height, 0.15), faces, 0.05), "box", loose=True)
    if kind == 1:
        surface = plain_surface(color, rng)
        faces = dict.fromkeys(("front", "back", "left", "right", "top", "bottom"), surface)
        thick = min(width, height) * float(rng.uniform(0.25, 0.8))
        return Item(BoxModel((width, height, thick), faces, 0.4), "box", loose=True)
    if kind == 2:
        rows, columns = 120, max(40, round(120 * width / height))
        art = plain_surface(color, rng, max(rows, columns)).levels[0][:rows, :columns]
        alpha = outline_pouch(rng, rows, columns)
        front = Surface.of(np.dstack([art, alpha]))
        heights = height_levels(pillow(rows, columns, 0.5) * np.float32(1.2), front)
        crumple = float(rng.uniform(0.7, 1.4))
        sheet = SheetModel((width, height, 1.2), front, front, heights, 0.1, crumple, False, 0.0)
        return Item(sheet, "pouch", loose=True)
    radii = np.full(64, min(width, height) / 3, np.float32) * np.linspace(
        rng.uniform(0.6, 1), 1, 64, dtype=np.float32
    )
    surface = plain_surface(color, rng)
    return Item(RoundModel(height, radii, surface, surface, surface, 0.6), "can", loose=True)


def twin_pack(model: Model, other: Model) -> Model | None:
    """Half of the art from another product: two prints side by side on one pack; None for bodies of revolution."""
    if isinstance(model, RoundModel) or isinstance(other, RoundModel):
        return None
    art = (other.faces["front"] if isinstance(other, BoxModel) else other.front).levels[0][:, :, :3]
    if isinstance(model, BoxModel):
        faces = {name: _half(face, art) for name, face in model.faces.items()}
        return replace(model, faces=faces)
    return replace(model, front=_half(model.front, art), back=_half(model.back, art))


def _half(surface: Surface, art: Image) -> Surface:
    """Replace the right half of a face, with a dark seam between."""
    image = surface.levels[0].copy()
    rows, columns = image.shape[:2]
    middle = columns // 2
    image[:, middle:, :3] = cv2.resize(art, (columns - middle, rows), interpolation=cv2.INTER_AREA)
    image[:, max(middle - 1, 0) : middle + 1, :3] = image[:, max(middle - 1, 0) : middle + 1, :3] // 3
    return Surface.of(image)


def windowed(model: Model, rng: np.random.Generator) -> Model | None:
    """A printed or film-covered window that shows goods: dark, yet closed; None for bodies of revolution."""
    if isinstance(model, RoundModel):
        return None
    face = model.faces["front"] if isinstance(model, BoxModel) else model.front
    image = face.levels[0].copy()
    rows, columns = image.shape[:2]
    x0, x1 = int(columns * rng.uniform(0.12, 0.3)), int(columns * rng.uniform(0.65, 0.9))
    y0, y1 = int(rows * rng.uniform(0.3, 0.5)), int(rows * rng.uniform(0.7, 0.92))
    pane = np.zeros((rows, columns), np.uint8)
    if rng.random() < 0.5:
        cv2.rectangle(pane, (x0, y0), (x1, y1), 255, -1)
    else:
        cv2.ellipse(
            pane, ((x0 + x1) // 2, (y0 + y1) // 2), ((x1 - x0) // 2, (y1 - y0) // 2), 0, 0, 360, 255, -1
        )
    goods = np.array(tx.hsv(rng.random(), rng.uniform(0, 0.7), rng.uniform(0.1, 0.7)), np.float32)
    lit = goods * (1 + 0.3 * tx.noise(rng, rows, columns, 4)[..., None])
    image[pane > 0, :3] = tx.clip8(lit)[pane > 0]
    edge = cv2.morphologyEx(pane, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    image[edge, :3] = 235
    if isinstance(model, BoxModel):
        return replace(model, faces={**model.faces, "front": Surface.of(image)})
    return replace(model, front=Surface.of(image))


def crumpled(model: Model, rng: np.random.Generator) -> Model | None:
    """A bag in deep folds under glaring film; None for stiff packs."""
    if not isinstance(model, SheetModel):
        return None
    return replace(model, crumple=float(rng.uniform(0.9, 1.6)), film=float(rng.uniform(0.5, 1.0)))


def add_labels(drawn: Drawn, rng: np.random.Generator) -> Drawn:
    """Stickers across the silhouette, as large as a second object's face would be."""
    rgba = drawn.rgba.copy()
    rows, columns = rgba.shape[:2]
    for _ in range(int(rng.integers(1, 3))):
        wide = int(columns * rng.uniform(0.25, 0.6)) + 14
        tall = int(wide * rng.uniform(0.4, 0.8)) + 10
        tone = (240, 240, 236) if rng.random() < 0.6 else tx.hsv(rng.random(), rng.uniform(0.4, 0.9), 0.85)
        sticker = np.empty((tall, wide, 3), np.uint8)
        sticker[:] = tone
        tx.draw_barcode(sticker, rng, (wide * 0.1, tall * 0.35, wide * 0.9, tall * 0.92))
        _paste(rgba, sticker, rng.uniform(0.3, 0.7, 2) * (columns, rows), float(rng.uniform(0, 360)))
    return replace(drawn, rgba=rgba)


def _paste(rgba: Image, sticker: Image, centre: Field, angle: float) -> None:
    tall, wide = sticker.shape[:2]
    turn = cv2.getRotationMatrix2D((wide / 2, tall / 2), angle, 1.0)
    turn[:, 2] += np.asarray(centre) - (wide / 2, tall / 2)
    size = (rgba.shape[1], rgba.shape[0])
    moved = cv2.warpAffine(sticker, turn, size)
    cover = cv2.warpAffine(np.full((tall, wide), 255, np.uint8), turn, size)
    np.copyto(rgba[:, :, :3], moved, where=((cover > 127) & (rgba[:, :, 3] > 127))[..., None])


def add_glare(drawn: Drawn, rng: np.random.Generator) -> Drawn:
    """Bright streaks of lamps mirrored in film or varnish."""
    rgba = drawn.rgba.copy()
    rows, columns = rgba.shape[:2]
    shine = np.zeros((rows, columns), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        centre = tuple(int(v) for v in rng.uniform(0.15, 0.85, 2) * (columns, rows))
        axes = (
            int(max(columns, rows) * rng.uniform(0.1, 0.45)),
            int(min(columns, rows) * rng.uniform(0.02, 0.1)) + 1,
        )
        cv2.ellipse(shine, centre, axes, float(rng.uniform(0, 180)), 0, 360, int(rng.integers(120, 256)), -1)
    soft = cv2.GaussianBlur(shine, (0, 0), float(rng.uniform(0.8, 4.0)))
    rgba[:, :, :3] = cv2.add(np.ascontiguousarray(rgba[:, :, :3]), cv2.cvtColor(soft, cv2.COLOR_GRAY2RGB))
    return replace(drawn, rgba=rgba)
