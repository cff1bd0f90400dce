"""Depth of what is drawn: z in the camera frame, in centimetres, of the surface that each pixel shows.

It follows the drawing, approximations included. Boxes, the tote and the ground are exact planes under perspective.
Soft packs are the plane through their middle plus the relief that their shading and outline show. Bodies of revolution
are drawn orthographically at the scale of their centre; so a point of theirs that lies ``h`` nearer to the camera than
the centre back-projects too close to the optical axis, by ``h / z`` of its distance to it: 1 cm for a bottle of 8 cm
at the rim of a tote seen from 1 m. Where two objects sink into one another, the one dropped later is on top in the
picture, the ids and the depth alike.
"""

from __future__ import annotations

import numpy as np

from mca_perception.datasets.synth.camera import Camera, Pose, Sprite, Vector
from mca_perception.datasets.synth.scene import Bin, polygon_mask
from mca_perception.datasets.synth.shapes import (
    FACES,
    BoxModel,
    RoundFrame,
    RoundModel,
    fill,
    round_surface,
)
from mca_perception.datasets.synth.sheets import SheetFrame, SheetModel
from mca_perception.datasets.synth.textures import Field

_Window = tuple[int, int, int, int]


def plane_depth(camera: Camera, point: Vector, normal: Vector, window: _Window) -> Field:
    """Depth of a plane through ``point`` (camera frame, cm) with ``normal``, for a pixel window (x, y, w, h)."""
    across, down = _rays(camera, window)
    slope = across * np.float32(normal[0]) + (down * np.float32(normal[1]) + np.float32(normal[2]))
    slope[np.abs(slope) < 1e-6] = 1e-6
    return np.asarray(np.float32(normal @ point) / slope, np.float32)


def _rays(camera: Camera, window: _Window) -> tuple[Field, Field]:
    """Camera-frame x ``[1, w]`` and y ``[h, 1]`` at unit depth of the pixels of a window."""
    x, y, width, height = window
    across = (np.arange(x, x + width, dtype=np.float32) - np.float32(camera.centre[0])) / np.float32(
        camera.focal
    )
    down = (np.arange(y, y + height, dtype=np.float32) - np.float32(camera.centre[1])) / np.float32(
        camera.focal
    )
    return across[None], down[:, None]


def sprite_depth(
    model: BoxModel | RoundModel | SheetModel, pose: Pose, camera: Camera, sprite: Sprite
) -> Field:
    """Depth of a drawn object over its sprite ``[h, w]``; of meaning only where the sprite is opaque."""
    window = (sprite.x, sprite.y, sprite.rgba.shape[1], sprite.rgba.shape[0])
    if isinstance(model, BoxModel):
        return _box_depth(model, pose, camera, window)
    if isinstance(model, RoundModel):
        return _round_depth(model, pose, camera, window)
    return _sheet_depth(SheetFrame(model, pose, camera), pose, camera, window)


def _box_depth(model: BoxModel, pose: Pose, camera: Camera, window: _Window) -> Field:
    """A ray enters a convex body where it has crossed the last of the planes that face the camera."""
    half = np.asarray(model.size) / 2
    found = np.zeros((window[3], window[2]), np.float32)
    for signs, normal in FACES.values():
        corners = (np.asarray(signs) * half) @ pose.rotation.T + pose.position
        outward = pose.rotation @ np.asarray(normal, np.float64)
        if float(outward @ corners.mean(0)) < 0:
            # The pixels of the outline lie up to half a pixel outside, where a steep face would run away.
            face = plane_depth(camera, corners[0], outward, window)
            np.maximum(found, np.minimum(face, np.float32(corners[:, 2].max())), out=found)
    return found


def _round_depth(model: RoundModel, pose: Pose, camera: Camera, window: _Window) -> Field:
    frame = RoundFrame(model, pose, camera)
    x, y, width, height = window
    share, slices, _, facing = round_surface(frame, x, y, width, height)
    radii, _ = frame.table
    centre_z, axis_z, front_z = (float(value) for value in (pose.position[2], frame.axis[2], frame.front[2]))
    found = (
        np.float32(centre_z)
        + np.float32(axis_z * model.length) * (np.float32(0.5) - share)
        + np.float32(front_z) * radii[slices] * facing
    )
    end = 0.0 if frame.sine > 0 else 1.0
    if frame.shows_disc(end):
        mask = np.zeros((height, width), np.uint8)
        fill(mask, frame.ring(end) - (x, y))
        offset = np.array([x, y]) - frame.slice_centre(end)
        along = (np.arange(width) + offset[0])[None] * frame.along[0] + (np.arange(height) + offset[1])[
            :, None
        ] * frame.along[1]
        disc = centre_z + axis_z * model.length * (0.5 - end) - along / (frame.scale * frame.sine) * front_z
        np.copyto(found, disc.astype(np.float32), where=mask > 127)
    return np.asarray(found, np.float32)


def _sheet_depth(frame: SheetFrame, pose: Pose, camera: Camera, window: _Window) -> Field:
    *_, raised = frame.displacement()
    away = frame.turned[:, 2]
    plane = plane_depth(camera, pose.position, away, window)
    if not frame.flat:
        # A raised point shows the depth of the plane where it would lie without its height.
        across, down = _rays(camera, window)
        shift = raised * np.float32(frame.lift @ away[:2] / camera.focal)
        slope = across * np.float32(away[0]) + (down * np.float32(away[1]) + np.float32(away[2])) - shift
        plane = np.float32(away @ pose.position) / slope
    return np.asarray(plane - raised * np.float32(frame.thickness * away[2]), np.float32)


def bin_depth(tote: Bin, camera: Camera, height: int, width: int) -> Field:
    """Depth ``[height, width]`` of an empty tote on the ground; its bottom has no thickness."""
    window = (0, 0, width, height)
    up = camera.rotation @ np.array([0.0, 0.0, -1.0])
    top, floor = tote.corners(tote.depth), tote.corners(0.0)
    ground = plane_depth(camera, camera.to_camera(floor[0])[0], up, window)
    found = ground.copy()
    rim = plane_depth(camera, camera.to_camera(top[0])[0], up, window)
    np.copyto(found, rim, where=polygon_mask(tote.outline(camera), height, width))
    for side in range(4):
        corners = np.array([top[side], top[(side + 1) % 4], floor[(side + 1) % 4], floor[side]])
        points = camera.to_camera(corners)
        normal = np.cross(points[1] - points[0], points[3] - points[0])
        wall = np.clip(plane_depth(camera, points[0], normal, window), rim, ground)
        np.copyto(found, wall, where=polygon_mask(camera.project(corners), height, width))
    np.copyto(found, ground, where=polygon_mask(camera.project(floor), height, width))
    return np.asarray(found, np.float32)
