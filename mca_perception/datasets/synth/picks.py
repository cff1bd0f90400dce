"""Picks: a container with well visible objects, and views of an object after it has been picked."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.synth import textures as tx
from mca_perception.datasets.synth.camera import Sprite
from mca_perception.datasets.synth.catalogue import Catalogue, Product
from mca_perception.datasets.synth.effects import apply_look, draw_look
from mca_perception.datasets.synth.scene import Canvas, draw_bin, draw_surroundings, wall_texture
from mca_perception.datasets.synth.textures import Image
from mca_perception.datasets.synth.totes import Instance, Scene, compose

PRE_PICK = "PickRGB"
POST_PICK = ("ToteWallRGB", "OnArmLowRGB", "FarTrayRGB")
MIN_VISIBLE_FRACTION = 0.4
_MISSING_SHARE = 0.04
_ATTEMPTS = 12


@dataclass(frozen=True)
class View:
    """One observation image (RGB uint8 ``[H, W, 3]``) and the picked object's mask (bool ``[H, W]``)."""

    image: Image
    mask: NDArray[np.bool_]
    jpeg_quality: int


@dataclass(frozen=True)
class Container:
    """A filled tote and the objects that are picked from it."""

    scene: Scene
    picked: list[Instance]


def fill_container(
    catalogue: Catalogue, pool: NDArray[np.int64], picks: int, rng: np.random.Generator
) -> Container:
    """Fill a tote with 4 to 14 distinct products of ``pool`` such that ``picks`` of them are well visible.

    A tote with too few well visible objects is filled again; the last try takes the most visible ones.
    """
    for attempt in range(_ATTEMPTS):
        count = min(int(rng.integers(max(4, picks + 1), 15)), len(pool))
        chosen = _with_line_mates(pool, rng, count)
        scene = compose(catalogue, [catalogue.product(int(index)) for index in chosen], rng)
        wanted = MIN_VISIBLE_FRACTION if attempt + 1 < _ATTEMPTS else 0.0
        visible = [instance for instance in scene.instances if instance.visible_fraction >= wanted]
        if len(visible) >= picks:
            break
    order = rng.permutation(len(visible))[:picks]
    return Container(scene, [visible[int(index)] for index in order])


def _with_line_mates(pool: NDArray[np.int64], rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Distinct members of the pool; about a quarter are neighbours of another one, so often line-mates."""
    start = rng.permutation(len(pool))[:count]
    for place in range(1, count):
        neighbour = (start[place - 1] + 1) % len(pool)
        if rng.random() < 0.25 and neighbour not in start:
            start[place] = neighbour
    return pool[start]


def pre_pick_view(scene: Scene, instance: Instance, rng: np.random.Generator) -> View:
    """Crop of the tote around an object with 10 to 30 % of margin, so that neighbours show."""
    x, y, width, height = instance.bbox
    margins = rng.uniform(0.1, 0.3, 4) * np.array([width, height, width, height])
    tall, wide = scene.instance_ids.shape
    x0, y0 = max(0, int(x - margins[0])), max(0, int(y - margins[1]))
    x1, y1 = min(wide, int(x + width + margins[2]) + 1), min(tall, int(y + height + margins[3]) + 1)
    mask = scene.instance_ids[y0:y1, x0:x1] == instance.instance_id
    return View(np.ascontiguousarray(scene.image[y0:y1, x0:x1]), mask, scene.jpeg_quality)


def post_pick_view(
    catalogue: Catalogue, product: Product, kind: str, rng: np.random.Generator
) -> View | None:
    """View of the object on the gripper, in a new pose and other light; None when the view is missing."""
    if rng.random() < _MISSING_SHARE:
        return None
    height, width = (int(value) for value in rng.integers(224, 341, 2))
    tray = kind == "FarTrayRGB"
    share = rng.uniform(0.4, 0.62) if tray else rng.uniform(0.55, 0.85)
    rgba = catalogue.render(product, rng, int(min(height, width) * share))
    image = view_background(kind, rng, height, width)
    canvas = Canvas(image)
    tall, wide = rgba.shape[:2]
    centre = np.array([width, height]) * (0.5 + rng.normal(0, 0.04, 2)) + (0, 0.05 * height)
    sprite = Sprite(rgba, int(centre[0] - wide / 2), int(centre[1] - tall / 2))
    contact = np.add(contact_point(rgba, rng, on_top=tray), (sprite.x, sprite.y))
    if not tray:
        draw_arm(canvas.image, contact, rng, length=height)
    shadow = rng.normal(0, 14, 2) if tray else rng.normal(0, 8, 2)
    canvas.add(sprite, (float(shadow[0]), float(shadow[1])), float(rng.uniform(8, 22)), 0.9 if tray else 0.5)
    covered = draw_arm_above(canvas, contact, rng) if tray else draw_cup(canvas, contact, rng)
    look = draw_look(rng)
    mask = (canvas.ids == 1) & ~covered
    return View(apply_look(canvas.image, look, rng), mask, look.jpeg_quality)


def contact_point(rgba: Image, rng: np.random.Generator, *, on_top: bool) -> NDArray[np.float64]:
    """Where the suction cup touches: near the middle from above, at the upper edge from the side."""
    rows, columns = np.nonzero(rgba[:, :, 3] > 127)
    if on_top:
        return np.array([columns.mean() + rng.normal(0, 6), rows.mean() + rng.normal(0, 6)])
    middle = columns.mean() + rng.normal(0, 0.06) * rgba.shape[1]
    column = int(np.argmin(np.abs(columns - middle)))
    near = rows[columns == columns[column]]
    return np.array([float(columns[column]), float(near.min())])


def view_background(kind: str, rng: np.random.Generator, height: int, width: int) -> Image:
    """What is behind the object: a tote wall, the dark cell seen from below, or a tray."""
    if kind == "ToteWallRGB":
        tote = draw_bin(rng)
        wall = cv2.resize(
            wall_texture(tote, rng, float(rng.uniform(0.6, 1.0))),
            (width, height),
            interpolation=cv2.INTER_LINEAR,
        )
        edge = int(height * rng.uniform(0.05, 0.25))
        wall[:edge] = draw_surroundings(rng, height, width)[:edge]
        wall[edge : edge + 8] = tx.mix(tote.color, (255, 255, 255), 0.3)
        return np.asarray(cv2.GaussianBlur(wall, (0, 0), float(rng.uniform(0.8, 2.5))), np.uint8)
    image = draw_surroundings(rng, height, width)
    if kind == "OnArmLowRGB":
        dim = tx.clip8(image * rng.uniform(0.3, 0.9))
        for _ in range(int(rng.integers(1, 4))):
            x, y = int(rng.integers(0, width)), int(rng.integers(0, height // 2))
            cv2.ellipse(
                dim,
                (x, y),
                (int(rng.integers(8, 40)), int(rng.integers(4, 14))),
                0,
                0,
                360,
                (250, 250, 240),
                -1,
                cv2.LINE_AA,
            )
        return np.asarray(cv2.GaussianBlur(dim, (0, 0), float(rng.uniform(2, 5))), np.uint8)
    color = tx.hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.25, 0.9))
    quad = np.array([[0.06, 0.08], [0.94, 0.06], [0.97, 0.95], [0.03, 0.93]]) * (width, height) + rng.normal(
        0, 8, (4, 2)
    )
    for inset, tone in (
        (0.0, tx.mix(color, (255, 255, 255), 0.25)),
        (0.05, tx.mix(color, (0, 0, 0), 0.3)),
        (0.11, color),
    ):
        shape = quad + (quad.mean(0) - quad) * inset * 2
        cv2.fillConvexPoly(image, np.round(shape).astype(np.int32), tone, cv2.LINE_AA)
    image = tx.clip8(
        image + (tx.noise(rng, height, width, 5) * 4 + tx.noise(rng, height, width, 1) * 2)[..., None]
    )
    return np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 1.6))), np.uint8)


def _metal(rng: np.random.Generator) -> tx.Color:
    return tx.hsv(rng.uniform(0.5, 0.65), rng.uniform(0, 0.12), rng.uniform(0.2, 0.75))


def draw_arm(image: Image, contact: NDArray[np.float64], rng: np.random.Generator, *, length: int) -> None:
    """Gripper tube that comes from above, drawn behind the object, lit like a cylinder."""
    lean, half = rng.normal(0, 0.12), rng.uniform(9, 22)
    color = _metal(rng)
    top = contact + np.array([lean * length, -length * 1.2])
    for step in range(7):
        share = step / 7
        tone = tx.mix(tx.mix(color, (0, 0, 0), 0.5), tx.mix(color, (255, 255, 255), 0.5), share)
        middle, reach = -half * 0.3 * share, half * (1 - share)
        quad = np.array([top, top, contact, contact])
        quad[:, 0] += middle + reach * np.array([-1, 1, 1, -1])
        cv2.fillConvexPoly(image, np.round(quad * 16).astype(np.int32), tone, cv2.LINE_AA, 4)


def draw_cup(canvas: Canvas, contact: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Bellows of the suction cup over the upper edge of the object; returns the covered pixels."""
    radius = rng.uniform(12, 26)
    color = tx.hsv(float(rng.choice([0.07, 0.55, 0.0])), rng.uniform(0, 0.7), rng.uniform(0.12, 0.6))
    covered = np.zeros(canvas.ids.shape, np.uint8)
    for fold in range(3):
        middle = np.add(contact, (0, 4 - fold * radius * 0.45))
        axes = (radius * (1.0 - 0.1 * fold), radius * 0.36)
        ellipse = ((float(middle[0]), float(middle[1])), (2 * axes[0], 2 * axes[1]), 0.0)
        cv2.ellipse(canvas.image, ellipse, tx.mix(color, (0, 0, 0), 0.35), -1, cv2.LINE_AA)
        inner = ((float(middle[0] - 2), float(middle[1] - 2)), (1.6 * axes[0], 1.3 * axes[1]), 0.0)
        cv2.ellipse(canvas.image, inner, tx.mix(color, (255, 255, 255), 0.12 * fold), -1, cv2.LINE_AA)
        cv2.ellipse(covered, ellipse, 1, -1)
    return covered > 0


def draw_arm_above(
    canvas: Canvas, contact: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Gripper seen from above: a tube from the image border to a round cup; returns the covered pixels."""
    covered = np.zeros(canvas.ids.shape, np.uint8)
    if rng.random() < 0.35:
        return covered > 0
    color, radius = _metal(rng), rng.uniform(9, 20)
    angle = rng.uniform(0, 2 * np.pi)
    far = contact + 500 * np.array([np.cos(angle), np.sin(angle)])
    start, end = tuple(contact.astype(int).tolist()), tuple(far.astype(int).tolist())
    for width, tone in (
        (1.3, tx.mix(color, (0, 0, 0), 0.5)),
        (0.8, color),
        (0.3, tx.mix(color, (255, 255, 255), 0.5)),
    ):
        cv2.line(canvas.image, start, end, tone, max(1, int(radius * width)), cv2.LINE_AA)
    cv2.line(covered, start, end, 1, max(1, int(radius * 1.3)))
    for share, tone in ((1.0, (25, 25, 28)), (0.75, tx.mix(color, (0, 0, 0), 0.2)), (0.4, (40, 40, 44))):
        cv2.circle(canvas.image, start, max(1, int(radius * share * 1.2)), tone, -1, cv2.LINE_AA)
    cv2.circle(covered, start, max(1, int(radius * 1.2)), 1, -1)
    return covered > 0
