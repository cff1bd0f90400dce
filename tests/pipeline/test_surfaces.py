"""Depth to points and boxes, against scenes whose geometry is known."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mca_perception.errors import CameraError
from mca_perception.objects import Objects
from mca_perception.pipeline.camera import Camera
from mca_perception.pipeline.surfaces import OrientedBox, measure_surfaces, oriented_box

SIZE = (240, 320)
MATRIX = np.array([[300.0, 0, 158.0], [0, 310.0, 121.0], [0, 0, 1]])
DISTORTED = np.array([-0.28, 0.07, 0.001, -0.0008, 0.0])


def objects_of(mask: NDArray[np.uint16]) -> Objects:
    ids = [int(i) for i in np.unique(mask) if i]
    boxes = []
    for i in ids:
        ys, xs = np.nonzero(mask == i)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return Objects(
        image_size=mask.shape,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.full(len(ids), 0.9, np.float32),
        labels=np.zeros(len(ids), np.int64),
        label_names=("Object",),
        instance_mask=mask,
        instance_ids=np.array(ids, np.uint16),
    )


def rotation(*degrees: float) -> NDArray[np.float64]:
    return np.asarray(cv2.Rodrigues(np.deg2rad(np.array(degrees)))[0])


def plate(
    camera: Camera, size: tuple[float, float], centre: Any, turn: NDArray[np.float64]
) -> tuple[Any, Any]:
    """Depth and mask of a rectangle in space, ray by ray."""
    rays = np.concatenate([camera.rays.astype(np.float64), np.ones((*camera.image_size, 1))], axis=-1)
    normal = turn[:, 2]
    depth = (np.asarray(centre) @ normal) / (rays @ normal)
    local = (rays * depth[..., None] - centre) @ turn
    inside = (np.abs(local[..., 0]) <= size[0] / 2) & (np.abs(local[..., 1]) <= size[1] / 2)
    return np.where(inside, depth, 2.0).astype(np.float32), inside.astype(np.uint16)


@pytest.mark.parametrize("distortion", [np.zeros(0), DISTORTED])
@pytest.mark.parametrize("turn", [(0, 0, 0), (0, 0, 30), (25, -20, 55)])
def test_a_plate_is_measured_where_it_was_drawn(distortion: Any, turn: tuple[float, float, float]) -> None:
    camera = Camera(SIZE, MATRIX, distortion)
    centre, size = np.array([0.04, -0.03, 0.8]), (0.30, 0.12)
    depth, mask = plate(camera, size, centre, rotation(*turn))
    (surface,) = measure_surfaces(objects_of(mask), depth, camera, nearest_m=0.1, farthest_m=5.0)
    assert surface is not None
    assert surface.box.centre == pytest.approx(centre, abs=0.004)
    assert surface.box.size[:2] == pytest.approx(size, abs=0.008)
    assert surface.box.size[2] < 0.004
    drawn = rotation(*turn)
    assert abs(surface.box.axes[:, 0] @ drawn[:, 0]) > np.cos(np.deg2rad(2))
    assert abs(surface.box.axes[:, 2] @ drawn[:, 2]) > np.cos(np.deg2rad(2))
    assert np.linalg.det(surface.box.axes) == pytest.approx(1.0)
    assert len(surface.points) == mask.sum()
    assert surface.centroid == pytest.approx(surface.points.mean(axis=0, dtype=np.float64), abs=1e-5)
    rows, columns = np.divmod(surface.pixels, SIZE[1])
    assert (mask[rows, columns] == 1).all()


def test_pixels_without_depth_and_mixed_pixels_do_not_count() -> None:
    camera = Camera(SIZE, MATRIX)
    depth, mask = plate(camera, (0.3, 0.2), [0, 0, 1.0], np.eye(3))
    rng = np.random.default_rng(1)
    holes, flying = rng.random(SIZE) < 0.3, rng.random(SIZE) < 0.05
    depth[flying] = 1.6
    depth[holes] = np.nan
    depth[:5] = 0.0
    (surface,) = measure_surfaces(objects_of(mask), depth, camera, nearest_m=0.1, farthest_m=5.0)
    assert surface is not None
    assert surface.points[:, 2] == pytest.approx(1.0, abs=1e-5)
    assert len(surface.points) == (mask.astype(bool) & ~holes & ~flying).sum()


def test_objects_without_enough_depth_have_no_surface() -> None:
    mask = np.zeros(SIZE, np.uint16)
    mask[10:40, 10:40], mask[100:130, 100:130] = 1, 2
    depth = np.full(SIZE, np.nan, np.float32)
    depth[100:130, 100:130] = 1.0
    depth[10:12, 10:15] = 1.0
    found = measure_surfaces(objects_of(mask), depth, Camera(SIZE, MATRIX), nearest_m=0.1, farthest_m=5.0)
    assert found[0] is None
    assert found[1] is not None
    empty = measure_surfaces(
        objects_of(np.zeros(SIZE, np.uint16)), depth, Camera(SIZE, MATRIX), nearest_m=0, farthest_m=5
    )
    assert empty == []


def test_rays_of_a_distorted_camera_meet_the_projected_points() -> None:
    for model, coefficients in (
        ("plumb_bob", DISTORTED),
        ("equidistant", np.array([0.05, -0.01, 0.002, 0.0])),
    ):
        camera = Camera(SIZE, MATRIX, coefficients, model)
        rows, columns = [5, 120, 230], [10, 158, 300]
        rays = camera.rays[rows, columns].astype(np.float64)
        points = np.concatenate([rays, np.ones((3, 1))], axis=1)[:, None]
        project = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
        pixels = project(points, np.zeros(3), np.zeros(3), MATRIX, coefficients)[0].reshape(-1, 2)
        assert pixels == pytest.approx(np.stack([columns, rows], axis=1).astype(float), abs=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_the_quaternion_is_the_rotation(seed: int) -> None:
    turn = rotation(*np.random.default_rng(seed).uniform(-170, 170, 3))
    x, y, z, w = OrientedBox(np.zeros(3), turn, np.ones(3)).quaternion
    again = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    assert again == pytest.approx(turn, abs=1e-9)


def test_many_points_are_sampled_for_the_box() -> None:
    rng = np.random.default_rng(0)
    points = (rng.uniform(-1, 1, (50_000, 3)) * [0.2, 0.1, 0.01] + [0, 0, 1]).astype(np.float32)
    assert oriented_box(points).size == pytest.approx([0.4, 0.2, 0.02], abs=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": np.zeros((3, 3))}, "no positive focal length"),
        ({"image_size": (0, 10)}, "calibrate"),
        ({"model": "magic"}, "not supported"),
        ({"distortion": np.ones(3)}, "takes 0 or 4 or 5"),
        ({"distortion": np.full(5, np.nan)}, "not finite"),
    ],
)
def test_unusable_cameras_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CameraError, match=message):
        Camera(**{"image_size": SIZE, "matrix": MATRIX, **change})


def test_sizes_must_agree() -> None:
    objects = objects_of(np.ones(SIZE, np.uint16))
    with pytest.raises(CameraError, match="depth image is 160 x 120, the image 320 x 240"):
        measure_surfaces(
            objects, np.ones((120, 160), np.float32), Camera(SIZE, MATRIX), nearest_m=0, farthest_m=5
        )
    with pytest.raises(CameraError, match="camera_info is"):
        measure_surfaces(
            objects, np.ones(SIZE, np.float32), Camera((10, 10), MATRIX), nearest_m=0, farthest_m=5
        )


def test_a_straight_line_is_straight_again_after_rectification() -> None:
    ideal, bent = Camera(SIZE, MATRIX), Camera(SIZE, MATRIX, DISTORTED)
    # What the distorted camera sees of a vertical edge at x = 0.4 z.
    image = np.where(bent.rays[..., :1] > 0.4, np.uint8(255), np.uint8(0)).repeat(3, axis=-1)
    edge = (bent.rectified(image)[20:-20, :, 0] < 128).sum(axis=1)
    assert np.ptp(edge) <= 1
    assert np.ptp((image[20:-20, :, 0] < 128).sum(axis=1)) > 1
    assert ideal.rectified(image) is image
