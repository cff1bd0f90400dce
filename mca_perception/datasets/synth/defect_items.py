"""What hangs on the tool: a product, an opened package or a loose part, drawn with the pixels that give it away."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.synth.camera import Camera, Matrix, Pose, Sprite, bounds, project, rotation
from mca_perception.datasets.synth.catalogue import Model
from mca_perception.datasets.synth.shapes import (
    BoxModel,
    Light,
    RoundModel,
    Surface,
    fill,
    paint_face,
    render_box,
    render_round,
    with_alpha,
)
from mca_perception.datasets.synth.sheets import render_sheet
from mca_perception.datasets.synth.textures import Image

Mask = NDArray[np.bool_]
_WHITE = 60
_SOLID = 127


@dataclass(frozen=True)
class Panel:
    """A flat piece: corners ``[4, 3]`` (cm, the object's frame) in texture order, seen from the side of its normal.

    ``shows_defect`` marks what an intact package would not show; ``shade`` darkens insides.
    """

    corners: NDArray[np.float64]
    normal: NDArray[np.float64]
    surface: Surface
    shows_defect: bool = False
    shade: float = 1.0


@dataclass(frozen=True)
class PanelModel:
    """An opened box or book: panels in the order in which they hide each other.

    Loose flaps, which may be in front of or behind the rest, are sorted by their distance to the camera.
    """

    size: tuple[float, float, float]
    panels: tuple[Panel, ...]
    flaps: tuple[Panel, ...] = ()
    gloss: float = 0.2


@dataclass(frozen=True)
class Item:
    """Something to draw.

    Attributes:
        model: geometry and textures.
        kind: of the product, for its pose.
        giveaway: model of the same geometry in which white marks what an intact package would not show.
        loose: the whole item is something that no intact package shows.
    """

    model: Model | PanelModel
    kind: str
    giveaway: Model | None = None
    loose: bool = False

    @property
    def size(self) -> tuple[float, float, float]:
        """Width, height and depth in cm."""
        if isinstance(self.model, RoundModel):
            diameter = 2 * float(self.model.radii.max())
            return diameter, self.model.length, diameter
        return self.model.size


@dataclass(frozen=True)
class Drawn:
    """An item in a picture: RGBA ``[h, w, 4]`` cropped to the silhouette, and its giveaway pixels ``[h, w]``."""

    rgba: Image
    giveaway: Mask
    origin: tuple[int, int] = field(default=(0, 0))


def draw_item(
    item: Item, orientation: Matrix, pixels_per_cm: float, light: Light, rng: np.random.Generator
) -> Drawn:
    """Draw an item alone.

    Args:
        item: what to draw.
        orientation: object to camera.
        pixels_per_cm: scale at the item's centre.
        light: in the camera frame.
        rng: wrinkles and highlights.
    """
    reach = float(np.abs(orientation @ np.diag(item.size)).sum(1).max())
    distance = 6.0 * reach
    camera = Camera(pixels_per_cm * distance, (0.0, 0.0), np.zeros(3), np.eye(3))
    pose = Pose(orientation, np.array([0.0, 0.0, distance]))
    if isinstance(item.model, PanelModel):
        sprite, giveaway = _render_panels(item.model, pose, camera, light, rng)
    else:
        sprite = _render(item.model, pose, camera, light, rng)
        giveaway = np.zeros(sprite.rgba.shape[:2], np.bool_)
        if item.giveaway is not None:
            coded = _render(item.giveaway, pose, camera, light, rng)
            giveaway = (coded.rgba[:, :, 0] > _WHITE) & (coded.rgba[:, :, 3] > _SOLID)
    solid = sprite.rgba[:, :, 3] > 0
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    rgba = np.ascontiguousarray(sprite.rgba[window])
    if item.loose:
        return Drawn(rgba, rgba[:, :, 3] > _SOLID)
    return Drawn(rgba, np.ascontiguousarray(giveaway[window]))


def draw_light(rng: np.random.Generator) -> Light:
    """A lamp about above the camera."""
    lamp = rotation((rng.normal(), rng.normal(), 0.3), rng.uniform(0, 0.7)) @ np.array([0.0, 0.0, -1.0])
    return Light(lamp, float(rng.uniform(0.2, 1)))


def _render(model: Model, pose: Pose, camera: Camera, light: Light, rng: np.random.Generator) -> Sprite:
    if isinstance(model, BoxModel):
        return render_box(model, pose, camera, light, rng)
    if isinstance(model, RoundModel):
        return render_round(model, pose, camera, light, rng)
    return render_sheet(model, pose, camera, light, rng)


def _render_panels(
    model: PanelModel, pose: Pose, camera: Camera, light: Light, rng: np.random.Generator
) -> tuple[Sprite, Mask]:
    """Draw what faces the camera: flaps beyond the centre first, then the panels in their order, then near flaps."""
    placed = [
        (panel, panel.corners @ pose.rotation.T + pose.position) for panel in (*model.panels, *model.flaps)
    ]
    fixed, loose = placed[: len(model.panels)], placed[len(model.panels) :]
    loose.sort(key=lambda entry: -float(entry[1][:, 2].mean()))
    behind = [entry for entry in loose if entry[1][:, 2].mean() > pose.position[2]]
    ordered = [*behind, *fixed, *(entry for entry in loose if entry[1][:, 2].mean() <= pose.position[2])]
    visible = [
        (panel, project(corners, camera), pose.rotation @ panel.normal)
        for panel, corners in ordered
        if float((pose.rotation @ panel.normal) @ corners.mean(0)) < 0
    ]
    x, y, width, height = bounds(np.concatenate([quad for _, quad, _ in visible]))
    color, alpha = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    giveaway = np.zeros((height, width), np.bool_)
    for panel, quad, normal in visible:
        local = quad - (x, y)
        gloss = 0.0 if panel.shows_defect else model.gloss * light.hardness
        paint_face(color, alpha, panel.surface, local, light.shade(normal) * panel.shade, gloss, rng)
        covered = np.zeros((height, width), np.uint8)
        fill(covered, local)
        giveaway[covered > _SOLID] = panel.shows_defect
    return Sprite(with_alpha(color, alpha), x, y), giveaway
