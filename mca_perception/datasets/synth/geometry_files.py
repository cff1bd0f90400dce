"""Truth in three dimensions beside a scene: depth image, camera_info, and the poses of camera and objects.

The files speak metres, millimetres (depth) and ROS conventions: an optical camera frame (x right, y down, z forward)
and a tote frame whose origin is the middle of the tote's floor, x to the right of the image, y to its top, z up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.synth import writer
from mca_perception.datasets.synth.camera import Camera, Matrix, Vector
from mca_perception.datasets.synth.totes import HEIGHT, WIDTH, Scene

FOLDERS = ("depth", "camera_info", "poses")
CAMERA_FRAME, TOTE_FRAME = "camera_optical_frame", "tote"
# World frame of the renderer (y down in the image, z into the floor, cm) to the tote frame (y up, z up).
_TO_TOTE = np.diag([1.0, -1.0, -1.0])
_METRES = 0.01


def write_geometry(folder: Path, name: str, scene: Scene, depth: NDArray[np.uint16]) -> None:
    """Write ``depth/<name>.png`` (16UC1, mm), ``camera_info/<name>.yaml`` and ``poses/<name>.json``."""
    _, data = cv2.imencode(".png", depth, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    writer.write_bytes(folder / "depth" / f"{name}.png", data.tobytes())
    writer.write_bytes(folder / "camera_info" / f"{name}.yaml", camera_info(scene.camera).encode())
    writer.write_json(folder / "poses" / f"{name}.json", poses(scene))


def camera_info(camera: Camera) -> str:
    """Calibration file as ROS' camera_calibration writes it: a pinhole without distortion, 640 x 512."""
    focal, (x, y) = round(camera.focal, 6), camera.centre
    intrinsics = [focal, 0.0, x, 0.0, focal, y, 0.0, 0.0, 1.0]
    projection = [focal, 0.0, x, 0.0, 0.0, focal, y, 0.0, 0.0, 0.0, 1.0, 0.0]
    matrices = (
        ("camera_matrix", 3, 3, intrinsics),
        ("distortion_coefficients", 1, 5, [0.0] * 5),
        ("rectification_matrix", 3, 3, np.eye(3).ravel().tolist()),
        ("projection_matrix", 3, 4, projection),
    )
    head = f"image_width: {WIDTH}\nimage_height: {HEIGHT}\ncamera_name: synth\ndistortion_model: plumb_bob\n"
    return head + "".join(
        f"{name}:\n  rows: {rows}\n  cols: {columns}\n  data: {data}\n"
        for name, rows, columns, data in matrices
    )


def poses(scene: Scene) -> dict[str, Any]:
    """Poses in the tote frame (m, quaternions x y z w): the camera's, and where each product was dropped.

    An object's frame lies in its middle, x along its width, y down its height and z from its front to its back;
    ``size`` holds these three. ``instance_id`` is 0 for an object without a label.
    """
    labelled = {instance.order: instance.instance_id for instance in scene.instances}
    camera = scene.camera
    return {
        "frame_id": TOTE_FRAME,
        "camera": {"frame_id": CAMERA_FRAME, **_pose(camera.rotation.T, camera.position)},
        "objects": [
            {
                "instance_id": labelled.get(order, 0),
                "product_id": product.product_id,
                **_pose(placement.rotation, placement.position),
                "size": [round(value * _METRES, 5) for value in product.size],
            }
            for order, (product, placement) in enumerate(zip(scene.contents, scene.placements, strict=True))
        ],
    }


def _pose(rotation: Matrix, position: Vector) -> dict[str, list[float]]:
    """Pose in the tote frame of something given in the renderer's world frame."""
    return {
        "position": np.round(_TO_TOTE @ position * _METRES, 6).tolist(),
        "orientation": np.round(quaternion(_TO_TOTE @ rotation), 8).tolist(),
    }


def quaternion(matrix: Matrix) -> Vector:
    """Unit quaternion (x, y, z, w), w >= 0, of a rotation matrix."""
    # The eigenvector of the largest eigenvalue of this matrix: without the case distinctions of other ways.
    m = matrix
    symmetric = np.array(
        [
            [m[0, 0] - m[1, 1] - m[2, 2], m[1, 0] + m[0, 1], m[2, 0] + m[0, 2], m[2, 1] - m[1, 2]],
            [m[1, 0] + m[0, 1], m[1, 1] - m[0, 0] - m[2, 2], m[2, 1] + m[1, 2], m[0, 2] - m[2, 0]],
            [m[2, 0] + m[0, 2], m[2, 1] + m[1, 2], m[2, 2] - m[0, 0] - m[1, 1], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m.trace()],
        ]
    )
    vector = np.linalg.eigh(symmetric)[1][:, -1]
    return np.asarray(vector if vector[3] >= 0 else -vector)
