"""Camera calibrations as the YAML files of ROS' ``camera_calibration`` and ``camera_info_manager``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mca_perception.errors import CameraError
from mca_perception.pipeline.camera import Camera

__all__ = ["read_camera", "write_camera"]

_MAX_BYTES = 1 << 20


def read_camera(path: str | os.PathLike[str]) -> Camera:
    """Read a calibration.

    Raises:
        CameraError: the file is missing, no such YAML, or describes no calibrated camera.
    """
    file = Path(path)
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise CameraError(f"{file} is larger than {_MAX_BYTES >> 20} MiB, so it is no camera calibration")
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CameraError(
            f"camera calibration {file} cannot be read ({error}); give a camera_info YAML"
        ) from error
    try:
        return Camera(
            (int(content["image_height"]), int(content["image_width"])),
            _matrix(content["camera_matrix"]).reshape(3, 3),
            _matrix(content["distortion_coefficients"]),
            str(content.get("distortion_model", "plumb_bob")),
        )
    except CameraError as error:
        raise CameraError(f"{file}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CameraError(
            f"{file} is no camera_info YAML ({type(error).__name__}: {error}); write one with mca calibrate camera"
        ) from error


def write_camera(path: str | os.PathLike[str], camera: Camera, name: str) -> None:
    """Write a calibration; the file is complete or not there.

    Args:
        path: file to write.
        camera: the calibration.
        name: the camera's.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    height, width = camera.image_size
    distortion = (
        camera.distortion if camera.is_distorted else np.zeros(4 if camera.model == "equidistant" else 5)
    )
    content = {
        "image_width": width,
        "image_height": height,
        "camera_name": name,
        "camera_matrix": _entry(camera.matrix),
        "distortion_model": camera.model,
        "distortion_coefficients": _entry(distortion[None]),
        "rectification_matrix": _entry(np.eye(3)),
        "projection_matrix": _entry(np.concatenate([camera.matrix, np.zeros((3, 1))], axis=1)),
    }
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            yaml.safe_dump(content, file, sort_keys=False, default_flow_style=None)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _matrix(entry: dict[str, Any]) -> NDArray[np.float64]:
    return np.array(entry["data"], np.float64)


def _entry(matrix: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "rows": matrix.shape[0],
        "cols": matrix.shape[1],
        "data": [float(value) for value in matrix.ravel()],
    }
