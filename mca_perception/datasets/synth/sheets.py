"""Soft and flat packs as reliefs: pouches, tubes, blister cards, mailers and cut-out photos.

A relief is a printed plane with a silhouette and a height map; it is shaded from the height's slope and
displaced under tilt.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mca_perception.datasets.synth import textures as tx
from mca_perception.datasets.synth.camera import (
    Camera,
    Matrix,
    Pose,
    Sprite,
    bounds,
    project,
    rotation,
)
from mca_perception.datasets.synth.shapes import AMBIENT, TONE_ONE, Light, Surface, polygon_area
from mca_perception.datasets.synth.textures import Field, Image


@dataclass(frozen=True)
class SheetModel:
    """Relief ``size`` = (w, h, thickness) cm with RGBA faces; ``heights`` (cm) belongs to the front.

    ``film`` 0..1 is how strongly the wrinkles of a clear bag around it glare.
    """

    size: tuple[float, float, float]
    front: Surface
    back: Surface
    heights: tuple[Field, ...]
    gloss: float = 0.4
    crumple: float = 0.3
    flat_back: bool = False
    film: float = 0.0


def height_levels(height: Field, surface: Surface) -> tuple[Field, ...]:
    """Copies of a height map at the sizes of the surface's levels."""
    sizes = [(level.shape[1], level.shape[0]) for level in surface.levels]
    return tuple(
        np.asarray(cv2.resize(height, size, interpolation=cv2.INTER_AREA), np.float32) for size in sizes
    )


def pillow(height: int, width: int, edge: float) -> Field:
    """Height 0..1 of a filled bag: flat seams, then a round rise over ``edge`` of the short side."""
    y, x = (np.abs(np.linspace(-1, 1, size, dtype=np.float32)) for size in (height, width))
    rise = (1 - y**2.5)[:, None] * (1 - x**2.5)[None]
    return np.asarray(np.clip(rise, 0, 1) ** max(edge, 0.05), np.float32)


def outline_pouch(rng: np.random.Generator, height: int, width: int) -> Image:
    """Alpha of a bag: rounded corners, wavy sides, sometimes zigzag seams or a waist."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    u, v = (x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1
    side = (
        0.95
        - 0.06 * rng.random() * np.cos(v * rng.uniform(1, 3))
        - 0.02 * np.sin(v * rng.uniform(6, 15) + rng.random() * 6)
    )
    end = 0.95 - 0.05 * rng.random() * np.cos(u * 2) - 0.015 * np.sin(u * rng.uniform(5, 12))
    if rng.random() < 0.35:
        end = end - 0.015 * np.sign(np.sin(u * width * 0.35))
    power = rng.uniform(7, 26)
    inside = 1 - (np.abs(u / side) ** power + np.abs(v / end) ** power)
    return _smooth(inside * 6)


def outline_tube(height: int, width: int, neck: float) -> tuple[Image, Field]:
    """Alpha and height (0..1) of a squeezed tube: wide crimp on top, round shoulder and cap at the bottom."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    u, v = (x + 0.5) / width * 2 - 1, (y + 0.5) / height
    half = np.where(
        v < 0.78, 0.97 - 0.22 * (v / 0.78) ** 1.5, np.where(v < 0.83, 0.75 - (v - 0.78) * 3, neck)
    )
    half = np.where(v < 0.02, 0, np.where(v > 0.985, 0, half)).astype(np.float32)
    inside = (half - np.abs(u)) * width / 2
    profile = np.sqrt(np.clip(1 - (u / np.maximum(half, 0.05)) ** 2, 0, 1)) * np.clip(v * 2.2, 0.06, 1)
    return _smooth(inside), profile.astype(np.float32)


def outline_card(rng: np.random.Generator, height: int, width: int) -> Image:
    """Alpha of a hang card: rounded corners and a hanging hole."""
    alpha = np.zeros((height, width), np.uint8)
    radius = int(min(height, width) * rng.uniform(0.02, 0.1)) + 2
    cv2.rectangle(alpha, (radius + 1, 1), (width - radius - 2, height - 2), 255, -1)
    cv2.rectangle(alpha, (1, radius + 1), (width - 2, height - radius - 2), 255, -1)
    for cx in (radius + 1, width - radius - 2):
        for cy in (radius + 1, height - radius - 2):
            cv2.circle(alpha, (cx, cy), radius, 255, -1, cv2.LINE_AA)
    return alpha


def _smooth(inside: Field) -> Image:
    return tx.clip8(np.clip(inside + 0.5, 0, 1) * 255)


def render_sheet(
    model: SheetModel, pose: Pose, camera: Camera, light: Light, rng: np.random.Generator
) -> Sprite:
    """Draw the side of a relief that faces the camera."""
    frame = SheetFrame(model, pose, camera)
    shaded = _shade(frame.texture, frame.height, model, frame.turned, light, rng)
    if frame.flat:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped = cv2.warpPerspective(shaded, frame.inverse, (frame.width, frame.tall), flags=flags)
        return Sprite(np.asarray(warped, np.uint8), frame.x, frame.y)
    map_x, map_y, _ = frame.displacement()
    return Sprite(np.asarray(cv2.remap(shaded, map_x, map_y, cv2.INTER_LINEAR), np.uint8), frame.x, frame.y)


class SheetFrame:
    """Geometry of one rendering of a relief: the visible side, and the pixel window that it covers."""

    def __init__(self, model: SheetModel, pose: Pose, camera: Camera) -> None:
        turned = pose.rotation
        surface, heights = model.front, model.heights
        if float(-turned[:, 2] @ pose.position) > 0:
            turned, surface = turned @ rotation((0, 1, 0), np.pi), model.back
            heights = tuple(height[:, ::-1] * np.float32(not model.flat_back) for height in heights)
        half_w, half_h, self.thickness = model.size[0] / 2, model.size[1] / 2, model.size[2]
        corners = np.array(
            [[-half_w, -half_h, 0], [half_w, -half_h, 0], [half_w, half_h, 0], [-half_w, half_h, 0]]
        )
        quad = project(corners @ turned.T + pose.position, camera)
        level = surface.level(polygon_area(quad))
        self.turned, self.texture, self.height = turned, surface.levels[level], heights[level]
        middle, raised = project(
            np.stack([pose.position, pose.position - turned[:, 2] * self.thickness]), camera
        )
        self.lift = raised - middle
        self.x, self.y, self.width, self.tall = bounds(np.concatenate([quad, quad + self.lift]), 2)
        source = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * self.texture.shape[1::-1] - 0.5
        self.inverse = cv2.getPerspectiveTransform(
            (quad - (self.x, self.y)).astype(np.float32), source.astype(np.float32)
        )

    @property
    def flat(self) -> bool:
        """Whether the relief shifts so little in the picture that it is drawn as a plane."""
        return float(np.abs(self.lift).max()) < 1.5

    def displacement(self) -> tuple[Field, Field, Field]:
        """Each point moved by its height times ``lift`` px (two fixed-point steps).

        Returns:
            Texture column and row that each pixel ``[tall, width]`` of the window shows, and the height there as a
            share of the thickness.
        """
        grid_y = np.arange(self.tall, dtype=np.float32)[:, None]
        grid_x = np.arange(self.width, dtype=np.float32)[None]
        relative = self.height / max(self.thickness, 1e-3)
        raised = np.zeros((self.tall, self.width), np.float32)
        m = self.inverse.astype(np.float32)
        for step in range(3):
            px, py = grid_x - raised * np.float32(self.lift[0]), grid_y - raised * np.float32(self.lift[1])
            scale = 1 / (m[2, 0] * px + m[2, 1] * py + m[2, 2])
            map_x, map_y = ((row[0] * px + row[1] * py + row[2]) * scale for row in m[:2])
            if step < 2:
                raised = np.asarray(cv2.remap(relative, map_x, map_y, cv2.INTER_LINEAR), np.float32)
        return map_x, map_y, raised


def _shade(
    texture: Image,
    height: Field,
    model: SheetModel,
    turned: Matrix,
    light: Light,
    rng: np.random.Generator,
) -> Image:
    """Light the relief in texture space; wrinkles differ in every rendering."""
    tall, wide = height.shape
    pixel = model.size[0] / wide
    rough = height
    if model.crumple > 0:
        octave = 6 if wide > 90 else 5
        creases = np.abs(tx.noise(rng, tall, wide, octave)) + 0.3 * np.abs(
            tx.noise(rng, tall, wide, octave - 1)
        )
        rough = height - creases * np.float32(model.crumple * 0.5 * min(model.size[0], 12) / 10)
    slope_x = cv2.Sobel(rough, cv2.CV_32F, 1, 0, ksize=3, scale=0.125 / pixel)
    slope_y = cv2.Sobel(rough, cv2.CV_32F, 0, 1, ksize=3, scale=0.125 / pixel)
    lx, ly, lz = (float(v) for v in turned.T @ light.direction)
    norm = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    lit = np.maximum(-slope_x * lx - slope_y * ly - lz, 0) * norm
    tone = cv2.cvtColor(
        cv2.convertScaleAbs(lit, alpha=TONE_ONE * (1.06 - AMBIENT), beta=TONE_ONE * AMBIENT),
        cv2.COLOR_GRAY2RGBA,
    )
    tone[:, :, 3] = TONE_ONE
    color = cv2.multiply(texture, tone, scale=1 / TONE_ONE)
    if model.gloss > 0.05:
        shine = np.clip(lit - 0.86, 0, 0.14) ** 2 * np.float32(9000 * model.gloss * light.hardness)
        if model.film > 0:
            ridges = tx.noise(rng, tall, wide, 5) * np.float32(9)
            shine = shine + np.exp(-ridges * ridges) * (tx.noise(rng, tall, wide, 6) > 0.1) * np.float32(
                95 * model.film
            )
        glare = cv2.cvtColor(cv2.convertScaleAbs(shine), cv2.COLOR_GRAY2RGBA)
        glare[:, :, 3] = 0
        color = cv2.add(color, glare)
    return np.asarray(color, np.uint8)
