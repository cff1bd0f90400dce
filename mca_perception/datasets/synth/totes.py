"""Scenes of ARMBench's segmentation subsets: products dropped into a tote, seen from above."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.synth.camera import Camera, Matrix, Pose, Vector, rotation
from mca_perception.datasets.synth.catalogue import Catalogue, Product, random_orientation
from mca_perception.datasets.synth.contents import (
    MIXED,
    SUBSETS,
    ZOOMED_OUT,
    ObjectRange,
    choose_products,
    crowding,
)
from mca_perception.datasets.synth.depth import bin_depth, sprite_depth
from mca_perception.datasets.synth.effects import apply_look, draw_look
from mca_perception.datasets.synth.scene import (
    Bin,
    Canvas,
    draw_bin,
    draw_surroundings,
    paint_bin,
    polygon_mask,
)
from mca_perception.datasets.synth.shapes import TONE_ONE, Light, fill, tone_map
from mca_perception.datasets.synth.textures import Image
from mca_perception.errors import DatasetError

WIDTH, HEIGHT = 640, 512
MIN_VISIBLE_FRACTION = 0.15
MIN_VISIBLE_AREA = 400


@dataclass(frozen=True)
class Instance:
    """A labelled object: ``bbox`` = (x, y, w, h) px of the visible part, ``area`` its visible pixels.

    ``order`` is its place in the scene's contents, the order in which they were dropped.
    """

    instance_id: int
    order: int
    product: Product
    bbox: tuple[int, int, int, int]
    area: int
    visible_fraction: float


@dataclass(frozen=True)
class Scene:
    """A finished picture with its exact truth.

    ``instance_ids`` ``[H, W]`` holds the id of the topmost labelled object, 0 elsewhere. ``tote_mask`` and
    ``tote_polygon`` ``[N, 2]`` (px, inside the image) are the tote with its rim, whatever lies in it.
    ``contents`` are all products dropped into the tote, seen or not, and ``placements`` their poses in the world frame
    (cm, see :mod:`mca_perception.datasets.synth.camera`). ``depth`` ``[H, W]``, if asked for, is in millimetres.
    """

    image: Image
    instance_ids: NDArray[np.uint16]
    tote_mask: NDArray[np.bool_]
    tote_polygon: Vector
    instances: list[Instance]
    contents: list[Product]
    placements: list[Pose]
    camera: Camera
    depth: NDArray[np.uint16] | None
    jpeg_quality: int


def render_scene(
    catalogue: Catalogue,
    seed: int,
    index: int,
    subset: str = MIXED,
    objects: ObjectRange | None = None,
    *,
    depth: bool = False,
) -> Scene:
    """Render scene ``index`` of a data set; depends on nothing but the arguments.

    Args:
        catalogue: products to draw from.
        seed: seed of the data set, 0 or more.
        index: number of the scene.
        subset: one of :data:`SUBSETS`.
        objects: fewest and most objects to drop; by default as the subset has them.
        depth: also give the depth image.

    Returns:
        640 x 512 scene. Objects of which under 15 % or under 400 px are visible stay unlabelled.

    Raises:
        DatasetError: unknown subset.
    """
    if subset not in SUBSETS:
        raise DatasetError(f"subset {subset!r}: must be one of {', '.join(SUBSETS)}")
    rng = np.random.default_rng([seed, SUBSETS.index(subset), index])
    products = choose_products(catalogue, rng, subset, objects)
    return compose(catalogue, products, rng, other_station=subset == ZOOMED_OUT, depth=depth)


def compose(
    catalogue: Catalogue,
    products: list[Product],
    rng: np.random.Generator,
    *,
    other_station: bool = False,
    depth: bool = False,
) -> Scene:
    """Drop ``products`` in turn into a random tote, larger and deeper for crowds, and photograph it."""
    crowded = crowding(len(products))
    tote = draw_bin(rng, other_station=other_station, crowding=crowded)
    camera = _draw_camera(tote, rng, far=other_station)
    lamp = rotation((rng.normal(), rng.normal(), 1e-3), min(abs(rng.normal(0, 0.4)), 0.9)) @ np.array(
        [0.0, 0.0, -1.0]
    )
    light = Light(camera.rotation @ lamp, float(rng.uniform(0.15, 1.0)))
    image = draw_surroundings(rng, HEIGHT, WIDTH, coarse=not other_station)
    outline = tote.outline(camera)
    _shade_ground(image, outline, rng)
    paint_bin(image, tote, camera, lamp, rng)
    canvas = Canvas(image, bin_depth(tote, camera, HEIGHT, WIDTH) if depth else None)
    strength = float(rng.uniform(0.65, 1.15))
    pile = Pile(tote, rng, crowded)
    placements = []
    for product in products:
        orientation = random_orientation(product.kind, rng)
        position, thickness = pile.drop(product, orientation, rng)
        placements.append(Pose(orientation, position))
        pose = camera.pose(orientation, position)
        sprite = catalogue.render_pose(product, pose, camera, light, rng)
        own_depth = sprite_depth(catalogue.model(product), pose, camera, sprite) if depth else None
        pixels = camera.focal / float(camera.to_camera(position)[0, 2])
        cast = (float(-lamp[0] * thickness * pixels), float(-lamp[1] * thickness * pixels))
        canvas.add(sprite, cast, max(4.0, 0.45 * thickness * pixels), strength, own_depth)
    return _finish(canvas, products, placements, camera, outline, rng)


def _finish(
    canvas: Canvas,
    products: list[Product],
    placements: list[Pose],
    camera: Camera,
    outline: Vector,
    rng: np.random.Generator,
) -> Scene:
    look = draw_look(rng)
    visible = np.bincount(canvas.ids.ravel(), minlength=len(products) + 1)[1:]
    table = np.zeros(len(products) + 1, np.uint16)
    instances: list[Instance] = []
    for order, product in enumerate(products):
        full = canvas.full_areas[order]
        area = int(visible[order])
        if area < MIN_VISIBLE_AREA or area < MIN_VISIBLE_FRACTION * full:
            continue
        table[order + 1] = len(instances) + 1
        rows, columns = canvas.windows[order]
        x, y, width, height = cv2.boundingRect((canvas.ids[rows, columns] == order + 1).astype(np.uint8))
        bbox = (x + columns.start, y + rows.start, width, height)
        instances.append(Instance(len(instances) + 1, order, product, bbox, area, area / full))
    frame = np.array([[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]], np.float32)
    _, clipped = cv2.intersectConvexConvex(outline.astype(np.float32), frame)
    polygon = clipped[:, 0].astype(np.float64)
    return Scene(
        apply_look(canvas.image, look, rng),
        table[canvas.ids],
        polygon_mask(polygon, HEIGHT, WIDTH),
        polygon,
        instances,
        products,
        placements,
        camera,
        None if canvas.depth is None else np.round(canvas.depth * 10).astype(np.uint16),
        look.jpeg_quality,
    )


def _draw_camera(tote: Bin, rng: np.random.Generator, *, far: bool) -> Camera:
    height = float(rng.uniform(85, 120)) + (60 if far else 0)
    tilt = rotation((rng.normal(), rng.normal(), 1e-3), abs(float(rng.normal(0, 0.1 if far else 0.035))))
    heading = rotation((0, 0, 1), float(rng.normal(0, 0.12 if far else 0.035)))
    turn = heading @ tilt
    target = np.array([rng.normal(0, 4.0 if far else 1.6), rng.normal(0, 3.0 if far else 1.4), -tote.depth])
    distance = height - tote.depth
    position = target - turn.T @ np.array([0.0, 0.0, distance])
    span = tote.width + 2 * (tote.flare + tote.rim)
    share = rng.uniform(0.48, 0.72) if far else rng.uniform(0.98, 1.2)
    return Camera(WIDTH * share / span * distance, (WIDTH / 2, HEIGHT / 2), position, turn)


def _shade_ground(image: Image, outline: Vector, rng: np.random.Generator) -> None:
    """Dark halo of the tote on what it stands on."""
    mask = np.zeros((HEIGHT // 4, WIDTH // 4), np.uint8)
    fill(mask, (outline + rng.normal(0, 8, 2)) / 4)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 4.5)
    cv2.multiply(image, tone_map(1 - soft * np.float32(0.6 / 255), HEIGHT, WIDTH), image, 1 / TONE_ONE)


class Pile:
    """Height map (1 cm cells) of what lies in the tote, and where the next product tends to land."""

    def __init__(self, tote: Bin, rng: np.random.Generator, crowding: float = 0.0) -> None:
        self._half = np.array([tote.width / 2, tote.length / 2])
        self._origin = np.ceil(self._half).astype(int) + 8
        self._heights = np.zeros((2 * self._origin[1], 2 * self._origin[0]), np.float32)
        self._depth = tote.depth
        mode = rng.random()
        self._focus = (
            np.zeros(2) if mode < 0.6 else rng.choice([-1, 1], 2) * self._half * rng.uniform(0.2, 0.5, 2)
        )
        scatter = rng.uniform(0.55, 0.85) if mode < 0.4 else rng.uniform(0.35, 0.55)
        # Many objects level out: they spread to the walls and slide into the hollows.
        self._scatter = self._half * (scatter + crowding * (0.8 - scatter))
        self._tries = 2 + round(3 * crowding)

    def drop(self, product: Product, orientation: Matrix, rng: np.random.Generator) -> tuple[Vector, float]:
        """Position (world cm) of the product's centre where it comes to rest, and its thickness (cm)."""
        signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / 2
        corners = (signs * np.asarray(product.size)) @ orientation.T
        reach, half = np.abs(corners[:, :2]).max(0), float(np.abs(corners[:, 2]).max())
        room = np.maximum(self._half - reach * 0.85, 0.0)
        hull = cv2.convexHull(corners[:, :2].astype(np.float32))[:, 0]
        spots = np.clip(self._focus + rng.normal(0, 1, (self._tries, 2)) * self._scatter, -room, room)
        rests = [self._rest(hull + spot) for spot in spots]
        choice = min(range(self._tries), key=lambda number: rests[number][0])
        base, mask = rests[choice]
        base = min(base, max(self._depth - half, 0.5 * self._depth))
        self._heights[mask] = np.maximum(self._heights[mask], base + 1.7 * half)
        return np.array([*spots[choice], -(base + half)]), 2 * half

    def _rest(self, hull: Vector) -> tuple[float, NDArray[np.bool_]]:
        mask = np.zeros(self._heights.shape, np.uint8)
        cv2.fillConvexPoly(mask, np.round(hull + self._origin).astype(np.int32), 1)
        inside = mask > 0
        under = self._heights[inside]
        upper_quartile = float(np.sort(under)[under.size * 3 // 4]) if under.size else 0.0
        return 0.75 * upper_quartile, inside


__all__ = ["HEIGHT", "WIDTH", "Instance", "Scene", "compose", "render_scene"]
