"""Depth images and camera_info: kept as they come, found again by the stamp of the image they belong to."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mca_perception.errors import CameraError, InvalidImageError
from mca_perception.objects import Objects
from mca_perception.pipeline.camera import Camera
from mca_perception.pipeline.surfaces import Surface, measure_surfaces
from mca_perception.ros.conversions import stamp_ns
from mca_perception.ros.images import decode_depth

__all__ = ["DepthInput", "camera_of", "info_of"]

_KEPT = 16
_FRESH_S = 3.0


def camera_of(message: CameraInfo) -> Camera:
    """The camera that a message describes.

    Raises:
        CameraError: it is not calibrated, or of an unknown model.
    """
    return Camera(
        (int(message.height), int(message.width)),
        np.asarray(message.k, np.float64).reshape(3, 3),
        np.asarray(message.d, np.float64),
        message.distortion_model or "plumb_bob",
    )


def info_of(camera: Camera, header: Header) -> CameraInfo:
    """The message that describes a camera."""
    height, width = camera.image_size
    matrix = [float(value) for value in camera.matrix.ravel()]
    return CameraInfo(
        header=header,
        height=height,
        width=width,
        distortion_model=camera.model,
        d=[float(value) for value in camera.distortion] or [0.0] * 5,
        k=matrix,
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[*matrix[:3], 0.0, *matrix[3:6], 0.0, *matrix[6:], 0.0],
    )


@dataclass(frozen=True)
class _Calibration:
    """A camera_info message's content, what it says, and why it cannot be used (empty: it can)."""

    key: tuple[Any, ...]
    camera: Camera | None
    problem: str


class DepthInput:
    """Measures objects in space where depth and camera_info are there; says why not where they are not."""

    def __init__(self, override: Camera | None = None) -> None:
        """Start without depth.

        Args:
            override: calibration to use instead of camera_info messages.
        """
        self._override = override
        self._calibration: _Calibration | None = None
        self._frames: OrderedDict[int, Image] = OrderedDict()
        self._arrived = threading.Condition()
        self._last_depth = float("-inf")
        self._problem = ""
        self._measured = 0
        self._missing = 0

    def receive_depth(self, message: Image) -> None:
        """Keep a depth image."""
        with self._arrived:
            self._frames[stamp_ns(message.header.stamp)] = message
            while len(self._frames) > _KEPT:
                self._frames.popitem(last=False)
            self._last_depth = time.monotonic()
            self._arrived.notify_all()

    def receive_info(self, message: CameraInfo) -> None:
        """Keep the latest camera_info; its rays are computed again only when it changes."""
        key = (message.height, message.width, message.distortion_model, *message.k, *message.d)
        if self._calibration is not None and self._calibration.key == key:
            return
        try:
            self._calibration = _Calibration(key, camera_of(message), "")
        except CameraError as error:
            self._calibration = _Calibration(key, None, f"camera_info: {error}")

    @property
    def is_in_use(self) -> bool:
        """Whether depth images are coming."""
        return time.monotonic() - self._last_depth < _FRESH_S

    def measure(
        self, objects: Objects, header: Header, *, nearest_m: float, farthest_m: float, patience_s: float
    ) -> list[Surface | None] | None:
        """Measure the objects of an image.

        Args:
            objects: of the image.
            header: of the image; the depth image has the same stamp and frame.
            nearest_m: see :func:`.measure_surfaces`.
            farthest_m: likewise.
            patience_s: how long the depth image may come after the image.

        Returns:
            One entry per object, None where too little depth is known; None when nothing can be measured.
        """
        if not self.is_in_use:
            return None
        camera, self._problem = self._camera()
        if camera is None:
            return None
        depth = self._take(stamp_ns(header.stamp), patience_s)
        if depth is None:
            self._missing += 1
            self._problem = "no depth image with the stamp of the image; synchronise the camera's streams"
            return None
        if depth.header.frame_id != header.frame_id:
            self._problem = (
                f"depth is in frame {depth.header.frame_id!r}, the image in {header.frame_id!r}: "
                "it is not aligned; publish depth registered to the image"
            )
            return None
        try:
            surfaces = measure_surfaces(
                objects, decode_depth(depth), camera, nearest_m=nearest_m, farthest_m=farthest_m
            )
        except (CameraError, InvalidImageError) as error:
            self._problem = str(error)
            return None
        self._measured += 1
        return surfaces

    def _camera(self) -> tuple[Camera | None, str]:
        if self._override is not None:
            return self._override, ""
        calibration = self._calibration
        if calibration is None:
            return None, (
                "depth images come, but no camera_info: objects are not measured; publish it, "
                "or name a file with the parameter camera_info_file"
            )
        return calibration.camera, calibration.problem

    def _take(self, stamp: int, patience_s: float) -> Image | None:
        """The depth image of a stamp; older ones will not be asked for again."""
        with self._arrived:
            self._arrived.wait_for(lambda: stamp in self._frames, patience_s)
            found = self._frames.pop(stamp, None)
            for old in [other for other in self._frames if other < stamp]:
                del self._frames[old]
        return found

    def facts(self) -> dict[str, Any]:
        """Keys and values for the diagnostics."""
        calibration = self._calibration
        known = self._override is not None or (calibration is not None and calibration.camera is not None)
        problem = self._problem if self.is_in_use else ""
        return {
            "depth": "yes" if self.is_in_use else "",
            "camera_info": "file" if self._override is not None else ("yes" if known else ""),
            "frames_measured": self._measured,
            "depth_missing": self._missing,
            "depth_problem": problem,
        }
