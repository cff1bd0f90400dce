"""Rendering of boxes and bodies of revolution under a pinhole camera."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from mca_perception.datasets.synth import textures as tx
from mca_perception.datasets.synth.camera import Camera, Pose, Sprite, Vector, bounds, project
from mca_perception.datasets.synth.textures import Field, Image

AMBIENT = 0.5
_SHIFT = 4
_TABLE = 512
_ARCSINE = np.arcsin(np.linspace(-1, 1, _TABLE)).astype(np.float32)
_PLACES = np.linspace(0, 1, _TABLE)
_RING = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_RING_SINE, _RING_COSINE = np.sin(_RING), np.cos(_RING)


@dataclass(frozen=True)
class Light:
    """Unit vector towards the lamp (camera frame) and the sharpness 0..1 of its highlights."""

    direction: Vector
    hardness: float = 0.5

    def shade(self, normal: Vector) -> float:
        """Brightness of a matt surface with the given outward unit normal; about 1 when it faces the lamp."""
        return AMBIENT + (1.06 - AMBIENT) * max(0.0, float(normal @ self.direction))


@dataclass(frozen=True)
class Surface:
    """A flat texture with its half-sized copies, so that small renderings do not alias."""

    levels: tuple[Image, ...]

    @classmethod
    def of(cls, image: Image) -> Surface:
        """Build the copies of ``image`` ``[H, W, 3 or 4]`` uint8."""
        levels = [image]
        while min(levels[-1].shape[:2]) > 24 and len(levels) < 4:
            height, width = levels[-1].shape[:2]
            half = cv2.resize(levels[-1], ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)
            levels.append(np.asarray(half, np.uint8))
        return cls(tuple(levels))

    def level(self, pixels: float) -> int:
        """Index of the copy to use when the texture will cover about ``pixels`` pixels."""
        texels = self.levels[0].shape[0] * self.levels[0].shape[1]
        wanted = 0.5 * np.log2(max(texels / max(pixels, 1.0), 1.0)) + 0.15
        return int(np.clip(int(wanted), 0, len(self.levels) - 1))

    def at(self, pixels: float) -> Image:
        """The copy that suits about ``pixels`` pixels."""
        return self.levels[self.level(pixels)]


@dataclass(frozen=True)
class BoxModel:
    """Cuboid ``size`` = (w, h, d) cm; front at -z. Faces: front, back, left, right, top, bottom."""

    size: tuple[float, float, float]
    faces: dict[str, Surface] = field(default_factory=dict)
    gloss: float = 0.2


# Corners in texture order (from the top left, clockwise) as signs of (x, y, z), and the outward normal.
FACES: dict[str, tuple[tuple[tuple[int, int, int], ...], tuple[int, int, int]]] = {
    "front": (((-1, -1, -1), (1, -1, -1), (1, 1, -1), (-1, 1, -1)), (0, 0, -1)),
    "back": (((1, -1, 1), (-1, -1, 1), (-1, 1, 1), (1, 1, 1)), (0, 0, 1)),
    "left": (((-1, -1, 1), (-1, -1, -1), (-1, 1, -1), (-1, 1, 1)), (-1, 0, 0)),
    "right": (((1, -1, -1), (1, -1, 1), (1, 1, 1), (1, 1, -1)), (1, 0, 0)),
    "top": (((-1, -1, 1), (1, -1, 1), (1, -1, -1), (-1, -1, -1)), (0, -1, 0)),
    "bottom": (((-1, 1, -1), (1, 1, -1), (1, 1, 1), (-1, 1, 1)), (0, 1, 0)),
}


def polygon_area(quad: Vector) -> float:
    """Area of a polygon ``[N, 2]`` in square pixels."""
    x, y = quad[:, 0], quad[:, 1]
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def fill(mask: Image, polygon: Vector) -> None:
    """Fill a convex polygon with 255, anti-aliased, at 1/16 px precision."""
    points = np.round(polygon * (1 << _SHIFT)).astype(np.int32)
    cv2.fillConvexPoly(mask, points, 255, cv2.LINE_AA, _SHIFT)


def overlay(region: Image, color: MatLike, alpha: MatLike) -> None:
    """Blend ``color`` over ``region`` in place, by ``alpha`` 0..255."""
    share = alpha * np.float32(1 / 255)
    region[:] = cv2.blendLinear(color, region, share, 1 - share)


# A brightness of 1 in an 8-bit tone map.
TONE_ONE = 128


def tone_map(brightness: Field | Vector, height: int, width: int) -> Image:
    """Brightness field (1 = unchanged, up to 1.99) as a smooth uint8 ``[height, width, 3]``."""
    small = cv2.cvtColor(cv2.convertScaleAbs(brightness, alpha=TONE_ONE), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def render_box(model: BoxModel, pose: Pose, camera: Camera, light: Light, rng: np.random.Generator) -> Sprite:
    """Draw the visible faces of a cuboid."""
    half = np.asarray(model.size) / 2
    quads = []
    for name, (signs, normal) in FACES.items():
        corners = (np.asarray(signs) * half) @ pose.rotation.T + pose.position
        outward = pose.rotation @ np.asarray(normal, np.float64)
        if float(outward @ corners.mean(0)) < 0:
            quads.append((name, project(corners, camera), outward))
    x, y, width, height = bounds(np.concatenate([quad for _, quad, _ in quads]))
    color = np.zeros((height, width, 3), np.uint8)
    alpha = np.zeros((height, width), np.uint8)
    for name, quad, outward in quads:
        quad = quad - (x, y)
        paint_face(
            color, alpha, model.faces[name], quad, light.shade(outward), model.gloss * light.hardness, rng
        )
    return Sprite(with_alpha(color, alpha), x, y)


def with_alpha(color: Image, alpha: Image) -> Image:
    """RGB ``[H, W, 3]`` and alpha ``[H, W]`` joined to RGBA."""
    rgba = np.empty((*alpha.shape, 4), np.uint8)
    cv2.mixChannels([color, alpha], [rgba], [0, 0, 1, 1, 2, 2, 3, 3])
    return rgba


def paint_face(
    color: Image,
    alpha: Image,
    surface: Surface,
    quad: Vector,
    shade: float,
    gloss: float,
    rng: np.random.Generator,
) -> None:
    """Draw one flat face into ``color`` ``[H, W, 3]`` and ``alpha`` ``[H, W]``; ``quad`` ``[4, 2]`` is in their px."""
    left, top, width, height = bounds(quad, 1)
    left, top = max(left, 0), max(top, 0)
    width, height = min(width, color.shape[1] - left), min(height, color.shape[0] - top)
    texture = surface.at(polygon_area(quad))
    tall, wide = texture.shape[:2]
    source = np.array([[0, 0], [wide, 0], [wide, tall], [0, tall]], np.float32) - 0.5
    local = quad - (left, top)
    transform = cv2.getPerspectiveTransform(source, local.astype(np.float32))
    warped = cv2.warpPerspective(
        texture, transform, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    mask = np.zeros((height, width), np.uint8)
    fill(mask, local)
    rows, columns = max(2, height // 8), max(2, width // 8)
    slope_x, slope_y = rng.normal(0, 0.07, 2)
    ramp = (
        np.linspace(-slope_x, slope_x, columns, dtype=np.float32)[None]
        + np.linspace(-slope_y, slope_y, rows, dtype=np.float32)[:, None]
    )
    tone = shade * (1 + ramp + 0.018 * tx.noise(rng, rows, columns, 2))
    cv2.multiply(warped, tone_map(tone, height, width), warped, 1 / TONE_ONE)
    if gloss > 0.1:
        shine = np.clip(tx.noise(rng, rows, columns, 3) - 0.8, 0, 1) * np.float32(70 * gloss / TONE_ONE)
        cv2.add(warped, tone_map(shine, height, width), warped)
    region = color[top : top + height, left : left + width]
    overlay(region, warped, mask)
    cover = alpha[top : top + height, left : left + width]
    np.maximum(cover, mask, out=cover)


@dataclass(frozen=True)
class RoundModel:
    """Body of revolution of ``length`` cm: ``radii`` (cm) from its top to its bottom, label around it."""

    length: float
    radii: Field
    wrap: Surface
    cap: Surface
    base: Surface
    gloss: float = 0.5


def render_round(
    model: RoundModel, pose: Pose, camera: Camera, light: Light, rng: np.random.Generator
) -> Sprite:
    """Draw a bottle, can or jar; its axis runs from the bottom (+y of the object) to the top (-y)."""
    frame = RoundFrame(model, pose, camera)
    rings = [frame.ring(share) for share in np.linspace(0, 1, 15)]
    x, y, width, height = bounds(np.concatenate(rings))
    alpha = np.zeros((height, width), np.uint8)
    for first, second in pairwise(rings):
        hull = cv2.convexHull((np.concatenate([first, second]) - (x, y)).astype(np.float32))[:, 0]
        fill(alpha, hull.astype(np.float64))
    color = _round_body(frame, light, x, y, width, height)
    near_top = frame.sine > 0
    _paint_disc(color, model.cap if near_top else model.base, frame, 0.0 if near_top else 1.0, (x, y), light)
    return Sprite(with_alpha(color, alpha), x, y)


class RoundFrame:
    """Geometry of one rendering of a body of revolution.

    It is orthographic around the object, which is small against its distance.
    """

    def __init__(self, model: RoundModel, pose: Pose, camera: Camera) -> None:
        self.model = model
        self._known = np.linspace(0, 1, len(model.radii))
        view = pose.position / np.linalg.norm(pose.position)
        axis = -pose.rotation[:, 1]
        self.sine = -float(axis @ view)
        flat = axis + self.sine * view
        length = float(np.linalg.norm(flat))
        if length < 0.05:
            flat, length = np.array([0.0, -1.0, 0.0]), 0.05
        self.cosine = length
        along = flat / np.linalg.norm(flat)
        image_axis = along[:2] / max(float(np.linalg.norm(along[:2])), 1e-6)
        self.along, self.across = image_axis, np.array([-image_axis[1], image_axis[0]])
        self.scale = camera.focal / float(pose.position[2])
        self.centre = project(pose.position[None], camera)[0]
        self.axis, self.front = axis, -self.cosine * view - self.sine * along
        self.side = np.array([*self.across, 0.0])
        self.roll = float(np.arctan2(pose.rotation[:, 0] @ self.side, pose.rotation[:, 2] @ self.side))

    def radius(self, share: float) -> float:
        """Radius (cm) at ``share`` of the way from the top to the bottom."""
        return float(np.interp(share, self._known, self.model.radii))

    @cached_property
    def table(self) -> tuple[Field, Field]:
        """Radius (cm) and slope of the outline at 512 places from the top to the bottom."""
        slopes = np.gradient(self.model.radii) * (len(self._known) / self.model.length)
        radii = np.maximum(np.interp(_PLACES, self._known, self.model.radii), 0.05)
        leans = np.clip(np.interp(_PLACES, self._known, slopes), -1.5, 1.5)
        return radii.astype(np.float32), leans.astype(np.float32)

    def shows_disc(self, share: float) -> bool:
        """Whether the end of the body at ``share`` is worth drawing: large enough, not seen from the edge."""
        return abs(self.sine) >= 0.08 and self.radius(share) >= 0.2

    def slice_centre(self, share: float) -> Vector:
        """Pixel of the axis at ``share`` of the way from the top to the bottom."""
        return np.asarray(
            self.centre + self.scale * (0.5 - share) * self.model.length * self.cosine * self.along
        )

    def ring(self, share: float) -> Vector:
        """Outline ``[24, 2]`` px of the slice at ``share`` of the way from the top to the bottom."""
        radius = self.radius(share)
        along = (0.5 - share) * self.model.length * self.cosine + radius * abs(self.sine) * _RING_SINE
        across = radius * _RING_COSINE
        return np.asarray(
            self.centre + self.scale * (along[:, None] * self.along + across[:, None] * self.across)
        )


def round_surface(
    frame: RoundFrame, x: int, y: int, width: int, height: int
) -> tuple[Field, NDArray[np.int32], Field, Field]:
    """Where on the side of a body each pixel of a window lies.

    Returns:
        Share of the way from the top to the bottom, its index in :attr:`RoundFrame.table`, the offset to the side in
        radii (-1..1) and how much the surface faces the camera (0..1); each ``[height, width]``.
    """
    grid_x = (np.arange(width) + x - frame.centre[0])[None] / frame.scale
    grid_y = (np.arange(height) + y - frame.centre[1])[:, None] / frame.scale
    along, across = (
        (grid_x * axis[0] + grid_y * axis[1]).astype(np.float32) for axis in (frame.along, frame.across)
    )
    radii, _ = frame.table
    extent, last = np.float32(frame.model.length * max(frame.cosine, 0.2)), np.float32(_TABLE - 1)
    # Which slice a pixel shows depends on the radius of that slice under tilt: two fixed-point steps settle it.
    share = np.clip(0.5 - along / extent, 0, 1)
    for _ in range(2):
        radius = radii[(share * last).astype(np.int32)]
        front = np.sqrt(np.maximum(radius * radius - across * across, 0))
        share = np.clip(0.5 - (along + front * np.float32(frame.sine)) / extent, 0, 1)
    slices = (share * last).astype(np.int32)
    lateral = np.clip(across / radii[slices], -1, 1)
    return share, slices, lateral, np.sqrt(1 - lateral * lateral)


def _round_body(frame: RoundFrame, light: Light, x: int, y: int, width: int, height: int) -> Image:
    """Colours of the side of a body in a pixel window; the silhouette is drawn elsewhere."""
    share, slices, lateral, facing = round_surface(frame, x, y, width, height)
    lean = frame.table[1][slices]
    texture = frame.model.wrap.at(width * height * 3.0)
    tall, wide = texture.shape[:2]
    turn = _ARCSINE[((lateral + 1) * np.float32((_TABLE - 1) / 2)).astype(np.int32)] + np.float32(frame.roll)
    map_x = (turn * np.float32(0.5 / np.pi) + np.float32(0.5)) % 1 * np.float32(wide)
    color = cv2.remap(
        texture, map_x, share * np.float32(tall - 1), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    to_front, to_side, to_axis = (
        np.float32(v @ light.direction) for v in (frame.front, frame.side, frame.axis)
    )
    lit = np.maximum(facing * to_front + lateral * to_side + lean * to_axis, 0) / np.sqrt(1 + lean * lean)
    tone = AMBIENT * (0.55 + 0.45 * facing) + (1.06 - AMBIENT) * lit
    cv2.multiply(color, tone_map(tone, height, width), color, 1 / TONE_ONE)
    eighth = np.square(np.square(np.square(lit)))
    shine = eighth * eighth * eighth * np.float32(190 * frame.model.gloss * light.hardness / TONE_ONE)
    return np.asarray(cv2.add(color, tone_map(shine, height, width)), np.uint8)


def _paint_disc(
    color: Image, surface: Surface, frame: RoundFrame, share: float, origin: tuple[int, int], light: Light
) -> None:
    """Draw the end of the body that faces the camera."""
    radius = frame.radius(share)
    tilt = abs(frame.sine)
    if not frame.shows_disc(share):
        return
    middle = frame.slice_centre(share) - origin
    texture = surface.at((2 * radius * frame.scale) ** 2 * tilt)
    size = texture.shape[0]
    first, second = frame.across * radius * frame.scale, frame.along * radius * frame.scale * tilt
    source = np.array([[size / 2, size / 2], [size, size / 2], [size / 2, size]], np.float32) - 0.5
    target = np.array([middle, middle + first, middle + second], np.float32)
    warped = cv2.warpAffine(
        texture,
        cv2.getAffineTransform(source, target),
        (color.shape[1], color.shape[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    mask = np.zeros(color.shape[:2], np.uint8)
    fill(mask, frame.ring(share) - origin)
    normal = frame.axis if share == 0.0 else -frame.axis
    overlay(color, cv2.convertScaleAbs(warped, alpha=light.shade(normal)), mask)
