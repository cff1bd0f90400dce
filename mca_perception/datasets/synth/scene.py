"""A composition in progress: canvas, instance ids, shadows; and the empty bin with its surroundings."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from mca_perception.datasets.synth import textures as tx
from mca_perception.datasets.synth.camera import Camera, Sprite, Vector
from mca_perception.datasets.synth.shapes import TONE_ONE, overlay, tone_map
from mca_perception.datasets.synth.textures import Color, Field, Image


class Canvas:
    """RGB image under construction with the id (1-based) of the topmost sprite at every pixel.

    ``depth`` ``[H, W]`` (cm), if wanted, is that of the empty scene, and then follows the sprites.
    """

    def __init__(self, image: Image, depth: Field | None = None) -> None:
        self.image = image
        self.depth = depth
        self.ids = np.zeros(image.shape[:2], np.uint16)
        self.full_areas: list[int] = []
        self.windows: list[tuple[slice, slice]] = []

    def add(
        self,
        sprite: Sprite,
        shadow: tuple[float, float],
        spread: float,
        strength: float,
        depth: Field | None = None,
    ) -> None:
        """Lay a sprite on top; its shadow falls by ``shadow`` (dx, dy) px, softened over ``spread`` px.

        ``depth`` is the sprite's own, as large as the sprite, for a canvas that has one.
        """
        alpha = cv2.extractChannel(sprite.rgba, 3)
        self._darken(sprite, alpha, shadow, spread, strength)
        height, width = self.image.shape[:2]
        self.full_areas.append(int(np.count_nonzero(alpha > 127)))
        x0, y0 = min(max(sprite.x, 0), width), min(max(sprite.y, 0), height)
        x1 = max(min(sprite.x + alpha.shape[1], width), x0)
        y1 = max(min(sprite.y + alpha.shape[0], height), y0)
        window = (slice(y0, y1), slice(x0, x1))
        self.windows.append(window)
        if x0 == x1 or y0 == y1:
            return
        inside = (slice(y0 - sprite.y, y1 - sprite.y), slice(x0 - sprite.x, x1 - sprite.x))
        color = cv2.cvtColor(sprite.rgba[inside], cv2.COLOR_RGBA2RGB)
        overlay(self.image[window], color, alpha[inside])
        solid = alpha[inside] > 127
        np.copyto(self.ids[window], np.uint16(len(self.full_areas)), where=solid)
        if self.depth is not None and depth is not None:
            np.copyto(self.depth[window], depth[inside], where=solid)

    def _darken(
        self, sprite: Sprite, alpha: MatLike, shadow: tuple[float, float], spread: float, strength: float
    ) -> None:
        """Contact shadow all around plus a soft cast shadow, both computed at a quarter of the resolution."""
        factor = 4
        pad = int(spread * 1.5 + max(abs(shadow[0]), abs(shadow[1]))) // factor + 3
        small = cv2.resize(
            alpha, (alpha.shape[1] // factor + 1, alpha.shape[0] // factor + 1), interpolation=cv2.INTER_AREA
        )
        small = cv2.copyMakeBorder(small, pad, pad, pad, pad, cv2.BORDER_CONSTANT).astype(np.float32)
        contact = cv2.GaussianBlur(small, (0, 0), 1.1)
        move = np.array([[1, 0, shadow[0] / factor], [0, 1, shadow[1] / factor]], np.float32)
        cast = cv2.GaussianBlur(
            cv2.warpAffine(small, move, small.shape[::-1]), (0, 0), max(spread / factor * 0.5, 0.8)
        )
        shade = (1 - np.float32(0.42 * strength / 255) * contact) * (
            1 - np.float32(0.5 * strength / 255) * cast
        )
        x, y = sprite.x - pad * factor, sprite.y - pad * factor
        shade = tone_map(shade, shade.shape[0] * factor, shade.shape[1] * factor)
        height, width = self.image.shape[:2]
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + shade.shape[1], width), min(y + shade.shape[0], height)
        if x0 < x1 and y0 < y1:
            region = self.image[y0:y1, x0:x1]
            cv2.multiply(region, shade[y0 - y : y1 - y, x0 - x : x1 - x], region, 1 / TONE_ONE)


@dataclass(frozen=True)
class Bin:
    """A tote: floor ``width`` x ``length`` cm around the origin, walls ``depth`` cm high."""

    width: float
    length: float
    depth: float
    flare: float
    rim: float
    color: Color
    ribs: int
    floor_style: int

    def corners(self, height: float, extra: float = 0.0) -> Vector:
        """Inner corners ``[4, 3]`` (world cm) at a height above the floor, pushed out by ``extra``."""
        grow = self.flare * height / self.depth + extra
        half_w, half_l = self.width / 2 + grow, self.length / 2 + grow
        return np.array(
            [
                [-half_w, -half_l, -height],
                [half_w, -half_l, -height],
                [half_w, half_l, -height],
                [-half_w, half_l, -height],
            ]
        )

    def outline(self, camera: Camera) -> Vector:
        """Outer edge of the rim in pixels ``[4, 2]``."""
        return camera.project(self.corners(self.depth, self.rim))


def draw_bin(rng: np.random.Generator, *, other_station: bool = False, crowding: float = 0.0) -> Bin:
    """Random tote: mostly yellow or blue as in ARMBench; at the ``other_station`` mostly other colours.

    ``crowding`` 0..1 makes it up to a tenth wider and two fifths deeper.
    """
    wider, deeper = 1 + 0.1 * crowding, 1 + 0.4 * crowding
    shares = [0.08, 0.17, 0.25, 0.13, 0.17, 0.2] if other_station else [0.43, 0.39, 0.08, 0.04, 0.05, 0.01]
    kind = int(rng.choice(6, p=shares))
    color = (
        tx.hsv(rng.normal(0.125, 0.012), rng.uniform(0.65, 0.95), rng.uniform(0.7, 0.95)),
        tx.hsv(rng.normal(0.605, 0.02), rng.uniform(0.55, 0.9), rng.uniform(0.4, 0.8)),
        tx.hsv(rng.random(), rng.uniform(0, 0.08), rng.uniform(0.35, 0.65)),
        tx.hsv(rng.random(), rng.uniform(0, 0.15), rng.uniform(0.1, 0.2)),
        tx.hsv(rng.random(), rng.uniform(0, 0.06), rng.uniform(0.82, 0.93)),
        tx.hsv(float(rng.choice([0.0, 0.35, 0.08])), rng.uniform(0.5, 0.8), rng.uniform(0.35, 0.6)),
    )[kind]
    return Bin(
        wider * float(rng.uniform(44, 52)),
        wider * float(rng.uniform(33, 39)),
        deeper * float(rng.uniform(15, 21)),
        float(rng.uniform(0.8, 2.5)),
        float(rng.uniform(1.4, 2.8)),
        color,
        int(rng.integers(0, 9)),
        int(rng.integers(4)),
    )


def paint_quad(image: Image, quad: Vector, texture: Image) -> None:
    """Warp a texture onto a pixel quad of the image; corners from the texture's top left, clockwise."""
    height, width = image.shape[:2]
    x0, y0 = np.maximum(np.floor(quad.min(0)).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(quad.max(0)).astype(int) + 2, (width, height))
    if x0 >= x1 or y0 >= y1:
        return
    local = quad - (x0, y0)
    tall, wide = texture.shape[:2]
    source = np.array([[0, 0], [wide, 0], [wide, tall], [0, tall]], np.float32)
    transform = cv2.getPerspectiveTransform(source, local.astype(np.float32))
    size = (int(x1 - x0), int(y1 - y0))
    cv2.warpPerspective(
        texture, transform, size, image[y0:y1, x0:x1], cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT
    )


def paint_bin(image: Image, tote: Bin, camera: Camera, light: Vector, rng: np.random.Generator) -> None:
    """Draw rim, walls and floor of an empty tote; ``light`` is the unit vector to the lamp, world frame."""
    top, floor = tote.corners(tote.depth), tote.corners(0.0)
    outer = tote.outline(camera)
    fill_rgb(image, outer, tx.mix(tote.color, (255, 255, 255), 0.18))
    lip = camera.project(tote.corners(tote.depth, tote.rim * 0.75))
    fill_rgb(image, lip, tx.mix(tote.color, (0, 0, 0), 0.12))
    inner_lip = camera.project(tote.corners(tote.depth, tote.rim * 0.25))
    fill_rgb(image, inner_lip, tx.mix(tote.color, (255, 255, 255), 0.3))
    top_px, floor_px = camera.project(top), camera.project(floor)
    normals = np.array([[0, 1, 0], [-1, 0, 0], [0, -1, 0], [1, 0, 0]])
    for side in range(4):
        following = (side + 1) % 4
        quad = np.array([top_px[side], top_px[following], floor_px[following], floor_px[side]])
        shade = 0.6 + 0.3 * max(0.0, float(normals[side] @ light)) + 0.06 * rng.random()
        paint_quad(image, quad, wall_texture(tote, rng, shade))
    paint_quad(image, floor_px, _floor_texture(tote, rng))
    seam = tx.mix(tote.color, (0, 0, 0), 0.35)
    for side in range(4):
        corner = np.round(np.array([top_px[side], floor_px[side], floor_px[(side + 1) % 4]]) * 16).astype(
            np.int32
        )
        cv2.polylines(image, [corner], False, seam, 1, cv2.LINE_AA, 4)


def fill_rgb(image: Image, polygon: Vector, color: Color) -> None:
    """Fill a convex polygon with a colour, anti-aliased."""
    cv2.fillConvexPoly(image, np.round(polygon * 16).astype(np.int32), color, cv2.LINE_AA, 4)


def tinted(color: Color, field: Field) -> Image:
    """A colour times a brightness field ``[H, W]``, as an image."""
    brightness = np.ascontiguousarray(field, np.float32)
    return np.asarray(cv2.merge([cv2.convertScaleAbs(brightness, alpha=value) for value in color]), np.uint8)


def wall_texture(tote: Bin, rng: np.random.Generator, shade: float) -> Image:
    """Inner side of a wall, rim at the top: ribs, scratches, sometimes a label."""
    rows, columns = 56, 240
    depth = np.linspace(1.05, 0.72, rows, dtype=np.float32)[:, None]
    field = (
        depth
        * shade
        * (1 + 0.035 * tx.noise(rng, rows, columns, 4) + 0.015 * tx.noise(rng, rows, columns, 1))
    )
    if tote.ribs > 2:
        phase = (np.arange(columns) * tote.ribs / columns) % 1
        field = (
            field * np.where(phase < 0.06, 0.82, np.where(phase < 0.12, 1.1, 1.0)).astype(np.float32)[None]
        )
    image = tinted(tote.color, field)
    if rng.random() < 0.3:
        x, y = int(rng.integers(10, columns - 70)), int(rng.integers(6, 20))
        cv2.rectangle(image, (x, y), (x + 56, y + 26), (228, 228, 224), -1)
        tx.draw_barcode(image, rng, (x + 3, y + 2, x + 53, y + 24))
    _scratches(image, rng, tote.color, int(rng.integers(0, 8)))
    return image


def _floor_texture(tote: Bin, rng: np.random.Generator) -> Image:
    rows, columns = 216, 288
    field = 0.84 + 0.03 * tx.noise(rng, rows, columns, 5) + 0.02 * tx.noise(rng, rows, columns, 1)
    y, x = np.arange(rows, dtype=np.float32)[:, None], np.arange(columns, dtype=np.float32)[None]
    if tote.floor_style == 1:
        field = field * (1 - 0.1 * ((x % 24 < 2) | (y % 24 < 2)))
    elif tote.floor_style == 2:
        field = field * (1 - 0.12 * (np.hypot(x % 18 - 9, y % 18 - 9) < 4))
    elif tote.floor_style == 3:
        field = field * (1 + 0.06 * np.sign(np.sin(x * 0.35)))
    edge = np.minimum(np.minimum(x, columns - x), np.minimum(y, rows - y)) / 26
    field = field * (0.72 + 0.28 * np.clip(edge, 0, 1))
    image = tinted(tote.color, field)
    _scratches(image, rng, tote.color, int(rng.integers(0, 22)))
    return image


def _scratches(image: Image, rng: np.random.Generator, color: Color, count: int) -> None:
    height, width = image.shape[:2]
    for _ in range(count):
        start = rng.random(2) * (width, height)
        end = start + rng.normal(0, 22, 2)
        tone = tx.mix(color, (255, 255, 255) if rng.random() < 0.6 else (30, 30, 30), rng.uniform(0.1, 0.35))
        cv2.line(
            image, tuple(start.astype(int).tolist()), tuple(end.astype(int).tolist()), tone, 1, cv2.LINE_AA
        )


def draw_surroundings(rng: np.random.Generator, height: int, width: int, *, coarse: bool = False) -> Image:
    """Slightly blurred background: belt, rollers, concrete, steel or wood, with a few stray structures.

    ``coarse`` draws it at a quarter instead of half the size, for scenes in which little of it is seen.
    """
    factor = 4 if coarse else 2
    h, w = height // factor, width // factor
    y, x = (np.arange(size, dtype=np.float32) * (factor / 2) for size in (h, w))
    y, x = y[:, None], x[None]
    if rng.random() < 0.5:
        x, y = y, x
    kind = int(rng.integers(6))
    base = tx.hsv(rng.random(), rng.uniform(0, 0.12), rng.uniform(0.15, 0.75))
    field: Field = 1 + 0.05 * tx.noise(rng, h, w, 5) + 0.03 * tx.noise(rng, h, w, 2)
    if kind == 0:
        field = field * (0.55 + 0.5 * np.abs(np.sin(np.pi * x / rng.uniform(22, 48))))
    elif kind == 1:
        base = tx.hsv(rng.random(), rng.uniform(0, 0.2), rng.uniform(0.08, 0.25))
        field = field * (1 - 0.12 * (x % rng.uniform(5, 14) < 2))
    elif kind == 2:
        field = field + 0.06 * tx.noise(rng, h, w, 6) + 0.04 * tx.noise(rng, h, w, 0)
    elif kind == 3:
        pitch = rng.uniform(14, 36)
        field = field * np.where((x % pitch < pitch * 0.3) | (y % pitch < pitch * 0.3), 1.0, 0.45)
    elif kind == 4:
        base = tx.hsv(rng.uniform(0.06, 0.1), rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.7))
        field = field + 0.08 * np.sin(x * 0.25 + 2 * tx.noise(rng, h, w, 6)) - 0.2 * (x % 60 < 2)
    image = tinted(base, field)
    for _ in range(int(rng.integers(0, 5))):
        color = tx.hsv(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.1, 0.9))
        if rng.random() < 0.5:
            position, thickness = int(rng.integers(0, max(h, w))), int(rng.integers(6, 52)) // factor
            first, second = (
                ((0, position), (w, position + int(rng.normal(0, 12))))
                if rng.random() < 0.5
                else ((position, 0), (position + int(rng.normal(0, 12)), h))
            )
            cv2.line(image, first, second, color, thickness, cv2.LINE_AA)
        else:
            corner, size = rng.random(2) * (w, h), rng.uniform(24, 180, 2) / factor
            box = cv2.boxPoints(
                (
                    (float(corner[0]), float(corner[1])),
                    (float(size[0]), float(size[1])),
                    float(rng.uniform(0, 90)),
                )
            )
            fill_rgb(image, box.astype(np.float64), color)
    soft = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 2.0)) * 2 / factor)
    return np.asarray(cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def polygon_mask(polygon: Vector, height: int, width: int) -> NDArray[np.bool_]:
    """Pixels covered by a convex polygon."""
    mask = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(mask, np.round(polygon * 16).astype(np.int32), 255, cv2.LINE_8, 4)
    return mask > 0
