"""Picks on the tool: one product, several at once, or an opened package; and photographs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.armbench_defects import OPENED
from mca_perception.datasets.synth import defect_disguises as disguises
from mca_perception.datasets.synth import picks
from mca_perception.datasets.synth.camera import Sprite
from mca_perception.datasets.synth.catalogue import LINE_LENGTH, Catalogue, random_orientation
from mca_perception.datasets.synth.defect_items import Drawn, Item, draw_item, draw_light
from mca_perception.datasets.synth.defect_openings import opened
from mca_perception.datasets.synth.effects import Look, apply_look, draw_look
from mca_perception.datasets.synth.scene import Canvas
from mca_perception.datasets.synth.shapes import overlay
from mca_perception.datasets.synth.textures import Image

NOMINAL, MULTI_PICK, PACKAGE_DEFECT = "nominal", "multi_pick", "package_defect"
CAMERAS = picks.POST_PICK
# From here on a defect counts as visible: pixels, and share of what is seen of the item or of the pick.
MIN_SHOWN_PIXELS = 110
MIN_SHOWN_SHARE = {MULTI_PICK: 0.1, PACKAGE_DEFECT: 0.02}
_SOLID = 127
_MAX_RELATED = 3


@dataclass(frozen=True)
class Held:
    """What the tool holds. ``spread`` 0..1: how far its items lie apart; ``disguise``: of an intact product."""

    label: str
    sublabel: str
    items: tuple[Item, ...]
    spread: float
    disguise: str


@dataclass(frozen=True)
class Photograph:
    """One image of a pick.

    ``mask`` ``[H, W]`` are the visible pixels of all that is held; ``shown`` tells whether its defect can be seen here.
    ``parts`` ``[H, W]`` numbers the items from 1, 0 is none of them; :data:`OPENED` is what no intact package shows.
    """

    image: Image
    mask: NDArray[np.bool_]
    parts: NDArray[np.uint8]
    shown: bool
    jpeg_quality: int


@dataclass(frozen=True)
class Station:
    """Cameras and light of one session: backgrounds and looks are the same for all its picks."""

    seed: tuple[int, ...]

    def frame(self, camera: str) -> tuple[Image, Look]:
        """Background and look of a camera."""
        background, look = _frame(self.seed, CAMERAS.index(camera))
        return background.copy(), look


@lru_cache(maxsize=8)
def _frame(seed: tuple[int, ...], camera: int) -> tuple[Image, Look]:
    rng = np.random.default_rng([*seed, camera])
    height, width = (int(value) for value in rng.integers(224, 341, 2))
    return picks.view_background(CAMERAS[camera], rng, height, width), draw_look(rng)


def hold(catalogue: Catalogue, pool: NDArray[np.int64], label: str, rng: np.random.Generator) -> Held:
    """Draw what the tool holds from the products of a pool."""
    place = int(rng.integers(len(pool)))
    product = catalogue.product(int(pool[place]))
    model = catalogue.model(product)
    items: list[Item] = []
    sublabel = label
    disguise = (
        str(rng.choice(disguises.DISGUISES)) if rng.random() < (0.5 if label == NOMINAL else 0.2) else ""
    )
    if label == PACKAGE_DEFECT:
        package, parts, sublabel = opened(model, product.kind, rng)
        items = [package, *(part for part in parts if rng.random() < 0.6)]
        if rng.random() < 0.4:
            items += [disguises.loose_part(product.size, rng) for _ in range(int(rng.integers(1, 3)))]
    else:
        if disguise == "twin_pack":
            other = catalogue.product(int(pool[int(rng.integers(len(pool)))]))
            model = disguises.twin_pack(model, catalogue.model(other)) or model
        elif disguise == "window":
            model = disguises.windowed(model, rng) or model
        elif disguise == "crumpled":
            model = disguises.crumpled(model, rng) or model
        items = [Item(model, product.kind)]
    if label == MULTI_PICK:
        for _ in range(1 if rng.random() < 0.85 else 2):
            mate = catalogue.product(int(_related(pool, place, rng)))
            items.append(Item(catalogue.model(mate), mate.kind))
    return Held(label, sublabel, tuple(items), float(rng.uniform(0.02, 0.75)), disguise)


def _related(pool: NDArray[np.int64], place: int, rng: np.random.Generator) -> int:
    """The same product again, a neighbour in the catalogue (often of the same line), or any other."""
    draw = rng.random()
    if draw < 0.25:
        return int(pool[place])
    if draw < 0.4:
        return int(pool[(place + int(rng.integers(1, min(LINE_LENGTH, _MAX_RELATED) + 1))) % len(pool)])
    return int(pool[int(rng.integers(len(pool)))])


def photograph(held: Held, station: Station, camera: str, rng: np.random.Generator) -> Photograph:
    """Photograph a pick in a new pose."""
    image, look = station.frame(camera)
    light = draw_light(rng)
    orientations = [random_orientation(item.kind, rng, 0.35) for item in held.items]
    scale = scale_of(held, orientations, image.shape[:2], camera, rng)
    drawn = [
        disguised(held, draw_item(item, orientation, scale, light, rng), rng)
        for item, orientation in zip(held.items, orientations, strict=True)
    ]
    return arrange(held, drawn, image, camera, _jittered(look, rng), rng)


def scale_of(
    held: Held,
    orientations: Sequence[NDArray[np.float64]],
    size: tuple[int, int],
    camera: str,
    rng: np.random.Generator,
) -> float:
    """Pixels per centimetre at which the largest item, or a group, suits the image."""
    share = rng.uniform(0.4, 0.62) if camera == "FarTrayRGB" else rng.uniform(0.55, 0.85)
    share *= 1.0 if len(held.items) == 1 else 0.85
    reaches = [
        float(np.abs(turn[:2] @ np.diag(item.size)).sum(1).max())
        for item, turn in zip(held.items, orientations, strict=True)
    ]
    return min(size) * share / (0.92 * max(reaches))


def disguised(held: Held, drawn: Drawn, rng: np.random.Generator) -> Drawn:
    """Add stickers or glare, if those are the disguise."""
    if held.disguise == "labels":
        return disguises.add_labels(drawn, rng)
    if held.disguise == "glare":
        return disguises.add_glare(drawn, rng)
    return drawn


def _jittered(look: Look, rng: np.random.Generator) -> Look:
    """A session's look for one exposure."""
    moved = float(rng.uniform(2, 5)) if rng.random() < 0.06 else 0.0
    return replace(
        look, exposure=float(np.clip(look.exposure * rng.normal(1, 0.04), 0.55, 1.35)), motion=moved
    )


def arrange(
    held: Held,
    drawn: Sequence[Drawn],
    image: Image,
    camera: str,
    look: Look,
    rng: np.random.Generator,
) -> Photograph:
    """Put drawn items on the tool in front of a background."""
    height, width = image.shape[:2]
    canvas = Canvas(image)
    tray = camera == "FarTrayRGB"
    centre = np.array([width, height]) * (0.5 + rng.normal(0, 0.04, 2)) + (0, 0.05 * height)
    sprites = [_place(drawn[0], centre)]
    for other in drawn[1:]:
        radius = sum(0.25 * (d.rgba.shape[0] + d.rgba.shape[1]) for d in (drawn[0], other))
        angle = rng.uniform(0, 2 * np.pi)
        reach = radius * float(np.clip(held.spread + rng.normal(0, 0.15), 0.02, 0.95))
        sprites.append(_place(other, centre + reach * np.array([np.cos(angle), np.sin(angle)])))
    contact = np.add(picks.contact_point(drawn[0].rgba, rng, on_top=tray), (sprites[0].x, sprites[0].y))
    if not tray:
        picks.draw_arm(canvas.image, contact, rng, length=height)
    elif rng.random() < 0.2:
        _mirror(canvas.image, sprites[0], float(rng.uniform(0.15, 0.45)))
    front = [0] if rng.random() < 0.65 else []
    order = [*(n for n in rng.permutation(len(drawn)) if n not in front), *front]
    giveaway = np.zeros((height, width), np.bool_)
    drop = rng.normal(0, 14, 2) if tray else rng.normal(0, 8, 2)
    for number in order:
        sprite = sprites[number]
        strength = 0.9 if tray else 0.5
        canvas.add(sprite, (float(drop[0]), float(drop[1])), float(rng.uniform(8, 22)), strength)
        _mark(giveaway, drawn[number], sprite)
    covered = picks.draw_arm_above(canvas, contact, rng) if tray else picks.draw_cup(canvas, contact, rng)
    ids = np.where(covered, 0, canvas.ids)
    shown = _is_shown(held, ids, canvas.full_areas, giveaway)
    # What is too small to count as a defect does not give one away either.
    parts = np.where(giveaway & (ids > 0), OPENED, ids) if shown else ids > 0
    picture = apply_look(canvas.image, look, rng)
    return Photograph(picture, ids > 0, parts.astype(np.uint8), shown, look.jpeg_quality)


def _place(drawn: Drawn, centre: NDArray[np.float64]) -> Sprite:
    tall, wide = drawn.rgba.shape[:2]
    return Sprite(drawn.rgba, int(centre[0] - wide / 2), int(centre[1] - tall / 2))


def _mirror(image: Image, sprite: Sprite, share: float) -> None:
    """A faint upside-down reflection below an object on a shiny tray."""
    flipped = np.ascontiguousarray(sprite.rgba[::-1])
    top = sprite.y + int(flipped.shape[0] * 0.85)
    y0, x0 = max(top, 0), max(sprite.x, 0)
    y1, x1 = min(top + flipped.shape[0], image.shape[0]), min(sprite.x + flipped.shape[1], image.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    part = flipped[y0 - top : y1 - top, x0 - sprite.x : x1 - sprite.x]
    alpha = cv2.convertScaleAbs(np.ascontiguousarray(part[:, :, 3]), alpha=share)
    overlay(image[y0:y1, x0:x1], np.ascontiguousarray(part[:, :, :3]), alpha)


def _mark(giveaway: NDArray[np.bool_], drawn: Drawn, sprite: Sprite) -> None:
    """Bring the giveaway pixels up to date after a sprite was laid on top."""
    height, width = giveaway.shape
    tall, wide = drawn.giveaway.shape
    y0, x0 = min(max(sprite.y, 0), height), min(max(sprite.x, 0), width)
    y1, x1 = max(min(sprite.y + tall, height), y0), max(min(sprite.x + wide, width), x0)
    inside = (slice(y0 - sprite.y, y1 - sprite.y), slice(x0 - sprite.x, x1 - sprite.x))
    solid = drawn.rgba[inside][:, :, 3] > _SOLID
    np.copyto(giveaway[y0:y1, x0:x1], drawn.giveaway[inside], where=solid)


def _is_shown(
    held: Held, ids: NDArray[np.uint16], full_areas: Sequence[int], giveaway: NDArray[np.bool_]
) -> bool:
    """Whether the defect can be seen: a second item, or enough pixels that an intact package does not show."""
    if held.label == NOMINAL:
        return False
    limit = MIN_SHOWN_SHARE[held.label]
    if held.label == MULTI_PICK:
        visible = np.bincount(ids.ravel(), minlength=len(full_areas) + 1)[1:]
        seen = [int(v) >= max(MIN_SHOWN_PIXELS, limit * f) for v, f in zip(visible, full_areas, strict=True)]
        return sum(seen) >= 2
    visible_pixels = int((ids > 0).sum())
    return int((giveaway & (ids > 0)).sum()) >= max(MIN_SHOWN_PIXELS, limit * visible_pixels)
