"""What the depth image says against where the products were dropped."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from mca_perception.datasets.synth.camera import rotation
from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.contents import SUBSETS
from mca_perception.datasets.synth.geometry_files import quaternion
from mca_perception.datasets.synth.tote_set import ToteSettings, write_totes
from mca_perception.datasets.synth.totes import Instance, Scene, render_scene

CATALOGUE = Catalogue(2, 60)
FAMILY = {"box": "box", "book": "box", "bottle": "round", "can": "round", "jar": "round"}
Points = NDArray[np.float64]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [
        render_scene(CATALOGUE, 4, index, subset, depth=True) for subset in SUBSETS[:2] for index in range(8)
    ]


def in_object_frame(scene: Scene, instance: Instance) -> Points:
    """Points of the visible mask, without its outermost pixel, back-projected into the frame of the object, cm."""
    mask = cv2.erode((scene.instance_ids == instance.instance_id).astype(np.uint8), np.ones((3, 3)))
    v, u = np.nonzero(mask)
    assert scene.depth is not None
    z, camera = scene.depth[v, u] / 10, scene.camera
    points = np.stack(
        [(u - camera.centre[0]) / camera.focal * z, (v - camera.centre[1]) / camera.focal * z, z], 1
    )
    placement = scene.placements[instance.order]
    return (points @ camera.rotation + camera.position - placement.position) @ placement.rotation


def instances(scenes: list[Scene], family: str) -> list[tuple[Scene, Instance]]:
    found = [
        (scene, instance)
        for scene in scenes
        for instance in scene.instances
        if FAMILY.get(instance.product.kind, "sheet") == family
    ]
    assert len(found) > 20
    return found


def test_boxes_lie_exactly_where_they_were_dropped(scenes: list[Scene]) -> None:
    for scene, instance in instances(scenes, "box"):
        points = in_object_frame(scene, instance)
        outside = (np.abs(points) - np.array(instance.product.size) / 2).max(1)
        assert abs(np.median(outside)) < 0.08
        assert np.percentile(np.abs(outside), 95) < 0.15


def test_bodies_of_revolution_lie_where_they_were_dropped_but_for_their_missing_perspective(
    scenes: list[Scene],
) -> None:
    for scene, instance in instances(scenes, "round"):
        points, (diameter, length, _) = in_object_frame(scene, instance), instance.product.size
        position = scene.camera.to_camera(scene.placements[instance.order].position)[0]
        # Half the diagonal is the most that a point can lie nearer than the centre.
        shift = np.hypot(diameter, length) / 2 / position[2] * np.hypot(*position[:2])
        assert np.percentile(np.abs(points[:, 1]) - length / 2, 99) < 0.3 + shift
        assert np.percentile(np.hypot(points[:, 0], points[:, 2]) - diameter / 2, 99) < 0.3 + shift


def test_soft_packs_rise_from_their_middle_plane(scenes: list[Scene]) -> None:
    for scene, instance in instances(scenes, "sheet"):
        points, size = in_object_frame(scene, instance), np.array(instance.product.size)
        assert (np.percentile(np.abs(points[:, :2]) - size[:2] / 2, 99, axis=0) < 0.3).all()
        assert np.percentile(np.abs(points[:, 2]), 99) < size[2] + 0.3
        facing = np.sign(points[:, 2].sum())
        assert np.percentile(facing * points[:, 2], 1) > -0.3


def test_upper_side_is_as_high_as_the_pile_says(scenes: list[Scene]) -> None:
    heights = []
    for scene, instance in instances(scenes, "box"):
        placement = scene.placements[instance.order]
        world = in_object_frame(scene, instance) @ placement.rotation.T + placement.position
        reach = np.abs(placement.rotation[2] @ np.diag(instance.product.size)).sum() / 2
        heights.append(-placement.position[2] + reach)
        assert -0.2 < -world[:, 2].min() <= heights[-1] + 0.15
        if instance.visible_fraction > 0.999:
            assert -world[:, 2].min() == pytest.approx(heights[-1], abs=0.5)
    assert np.ptp(heights) > 5


def test_ground_and_rim_are_planes(scenes: list[Scene]) -> None:
    for scene in scenes[8:]:
        v, u = np.nonzero(~scene.tote_mask)
        assert scene.depth is not None
        z, camera = scene.depth[v, u] / 10, scene.camera
        points = np.stack(
            [(u - camera.centre[0]) / camera.focal * z, (v - camera.centre[1]) / camera.focal * z, z], 1
        )
        height = -(points @ camera.rotation + camera.position)[:, 2]
        assert np.median(np.abs(height)) < 0.1
        assert scene.depth.min() > 0


def test_depth_does_not_change_the_picture(scenes: list[Scene]) -> None:
    plain = render_scene(CATALOGUE, 4, 0)
    assert plain.depth is None
    assert np.array_equal(plain.image, scenes[0].image)
    assert np.array_equal(plain.instance_ids, scenes[0].instance_ids)


@pytest.mark.parametrize("angle", [0.0, 1.0, np.pi / 2, np.pi, -2.5])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.3, -0.5, 0.8)])
def test_quaternions_turn_like_their_matrices(axis: tuple[float, float, float], angle: float) -> None:
    matrix = rotation(axis, angle)
    x, y, z, w = quaternion(matrix)
    assert x * x + y * y + z * z + w * w == pytest.approx(1)
    turned = (
        rotation(np.array([x, y, z]), 2 * np.arctan2(np.linalg.norm([x, y, z]), w)) if angle else np.eye(3)
    )
    assert np.allclose(turned, matrix, atol=1e-7)


def test_files_speak_ros_units_and_agree_with_each_other(tmp_path: Path) -> None:
    settings = ToteSettings(tmp_path, 2, 5, products=12, split="test", objects="6-8", depth=True)
    write_totes(settings, workers=1)
    folder = tmp_path / settings.subset
    for path in (folder / "images").glob("*.jpg"):
        depth = cv2.imread(str(folder / "depth" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        assert (depth.dtype, depth.shape) == (np.uint16, (512, 640))
        info = yaml.safe_load((folder / "camera_info" / f"{path.stem}.yaml").read_text())
        assert (info["image_width"], info["image_height"]) == (640, 512)
        intrinsics = np.array(info["camera_matrix"]["data"]).reshape(3, 3)
        projection = np.array(info["projection_matrix"]["data"]).reshape(3, 4)
        assert np.array_equal(projection[:, :3], intrinsics)
        poses = json.loads((folder / "poses" / f"{path.stem}.json").read_text())
        camera = poses["camera"]
        axis, w = np.array(camera["orientation"][:3]), camera["orientation"][3]
        turn = rotation(axis, 2 * np.arctan2(np.linalg.norm(axis), w))
        assert turn[2, 2] < -0.9, "the camera looks down"
        # An object in the middle of its visible pixels: its centre projects near them.
        ids = cv2.imread(str(folder / "masks" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        assert len(poses["objects"]) in range(6, 9)
        for entry in poses["objects"]:
            point = turn.T @ (np.array(entry["position"]) - camera["position"])
            u, v, _ = intrinsics @ point / point[2]
            rows, columns = np.nonzero(ids == entry["instance_id"])
            if entry["instance_id"] and len(rows) > 0:
                reach = np.linalg.norm(entry["size"]) / 2 / point[2] * intrinsics[0, 0] + 3
                assert np.hypot(columns.mean() - u, rows.mean() - v) < reach
                assert abs(np.median(depth[rows, columns]) / 1000 - point[2]) < np.linalg.norm(entry["size"])
            assert 0 < entry["position"][2] < 0.6
