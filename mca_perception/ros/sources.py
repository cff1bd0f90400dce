"""Where images come from: folder, video file, camera, bag. Nothing here knows ROS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets import images
from mca_perception.datasets.armbench import Pick
from mca_perception.datasets.images import read_rgb
from mca_perception.errors import CameraError, DatasetError, InvalidImageError, SourceError
from mca_perception.geometry import MAX_PIXELS
from mca_perception.pipeline.camera import Camera
from mca_perception.pipeline.camera_files import read_camera
from mca_perception.ros.image_headers import encoded_size, image_format
from mca_perception.ros.manifests import read_manifest

__all__ = [
    "CameraSource",
    "FolderSource",
    "Frame",
    "Source",
    "VideoSource",
    "encode",
    "find_images",
    "open_source",
    "read_encoded",
]

ENCODED_SUFFIXES = (".jpg", ".jpeg", ".png")
BAG_SUFFIXES = (".mcap", ".db3")
MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class Frame:
    """One image of a source; either ``pixels`` or ``encoded`` is there.

    Attributes:
        name: what it is called in logs.
        pixels: uint8 ``[H, W, 3]`` RGB.
        encoded: bytes of a JPEG or PNG file.
        time_ns: when it was recorded, relative to any fixed moment; ``None`` when unknown.
        stamp_ns: recorded header stamp.
        frame_id: recorded frame.
        container_id: container shown in the image; empty when unknown.
        product_ids: products in that container; ``None`` when unknown.
        depth: uint16 ``[H, W]`` millimetres, aligned with the image, 0 where unknown; ``None`` without.
        camera: calibration of the camera that took it; ``None`` when unknown.
        pick: the pick that follows, with its further views; ``None`` when there is none.
    """

    name: str
    pixels: NDArray[np.uint8] | None = None
    encoded: bytes | None = None
    time_ns: int | None = None
    stamp_ns: int | None = None
    frame_id: str = ""
    container_id: str = ""
    product_ids: tuple[str, ...] | None = None
    depth: NDArray[np.uint16] | None = None
    camera: Camera | None = None
    pick: Pick | None = None


class Source(Protocol):
    """Iterable over frames; every iteration starts from the beginning.

    Where the source itself is damaged an iteration ends with a SourceError, after the frames that could be read.

    Attributes:
        description: one line for the log.
        live: a camera: it has its own clock and never waits.
        skipped: images that could not be read so far.
    """

    description: str
    live: bool
    skipped: int

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames."""
        ...

    def close(self) -> None:
        """Release files and devices."""
        ...


def open_source(source: str, *, topic: str = "") -> Source:
    """Open whatever a path names.

    Args:
        source: folder of images or picks, video file, camera device, rosbag2 folder, ``.mcap`` or ``.db3`` file.
        topic: image topic of a bag; empty for the only one.

    Raises:
        SourceError: nothing is there, or it holds no images.
    """
    if not source:
        raise SourceError("no source given; set `source` to a folder, video, camera (/dev/video0) or bag")
    path = Path(source)
    if path.is_char_device():
        return CameraSource(path)
    if not path.exists():
        raise SourceError(
            f"source {source} does not exist; give a folder, video, camera (/dev/video0) or bag"
        )
    if path.suffix in BAG_SUFFIXES or (path / "metadata.yaml").is_file():
        from mca_perception.ros.bags import BagSource

        return BagSource(path, topic=topic)
    if (path / "Picks").is_dir():
        from mca_perception.ros.pick_source import PickSource

        return PickSource(path)
    return FolderSource(path) if path.is_dir() else VideoSource(path)


def read_encoded(path: Path) -> bytes:
    """Bytes of an image file.

    Raises:
        InvalidImageError: it is larger than 256 MiB.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidImageError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; reduce it first")
    return path.read_bytes()


def find_images(folder: Path) -> list[Path]:
    """Image files of a folder, else of its ``images`` folder, else of the first ``*/images``.

    Raises:
        SourceError: there are none.
    """
    for candidate in (folder, folder / "images", *sorted(folder.glob("*/images"))):
        if candidate.is_dir() and (found := images.find_images(candidate)):
            return found
    suffixes = ", ".join(sorted(images.IMAGE_SUFFIXES))
    raise SourceError(
        f"folder {folder} holds no images ({suffixes}), nor does a folder `images` in it; give another folder"
    )


class FolderSource:
    """The images of a folder, by name; unreadable ones are skipped and counted.

    In ARMBench's segmentation layout with ``manifests/<image name>.json`` beside ``images/``, every frame
    also tells its container and the products in it; with ``depth/<image name>.png`` (16 bit, millimetres) and
    ``camera_info/<image name>.yaml``, as ``mca synth totes --depth`` writes them, also its depth and camera.
    """

    live = False

    def __init__(self, folder: Path) -> None:
        self.skipped = 0
        self._images = find_images(folder)
        self._manifests = self._images[0].parent.parent / "manifests"
        self.description = f"{len(self._images)} images in {self._images[0].parent}"

    def __iter__(self) -> Iterator[Frame]:
        for path in self._images:
            try:
                yield self._read(path)
            except (InvalidImageError, DatasetError, CameraError, OSError):
                self.skipped += 1

    def _read(self, path: Path) -> Frame:
        manifest = read_manifest(self._manifests / f"{path.stem}.json")
        context = self._geometry(path.stem)
        if manifest is not None:
            context |= {"container_id": manifest.container_id, "product_ids": manifest.product_ids}
        if path.suffix.lower() not in ENCODED_SUFFIXES:
            return Frame(path.name, pixels=read_rgb(path), **context)
        data = read_encoded(path)
        encoded_size(data)
        return Frame(path.name, encoded=data, **context)

    def _geometry(self, name: str) -> dict[str, Any]:
        """Depth and camera of an image, as far as they are there."""
        root = self._images[0].parent.parent
        depth, camera = root / "depth" / f"{name}.png", root / "camera_info" / f"{name}.yaml"
        found: dict[str, Any] = {}
        if depth.is_file():
            height, width = images.image_size(depth)
            if height * width > MAX_PIXELS:
                raise InvalidImageError(f"{depth} is larger than {MAX_PIXELS / 1e6:.0f} megapixels")
            pixels = cv2.imread(str(depth), cv2.IMREAD_UNCHANGED)
            if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 2:
                raise InvalidImageError(f"{depth} is no 16 bit depth image; write it again")
            found["depth"] = pixels
        if camera.is_file():
            found["camera"] = read_camera(camera)
        return found

    def close(self) -> None:
        """Nothing is held open."""


class VideoSource:
    """The frames of a video file, with the video's own timing."""

    live = False

    def __init__(self, path: Path) -> None:
        self.skipped = 0
        self._path = path
        capture = self._open()
        rate = capture.get(cv2.CAP_PROP_FPS)
        capture.release()
        self._period_ns = int(1e9 / rate) if rate > 0 else None
        self.description = f"video {path} ({rate:g} frames per second)"

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self._path))
        if not capture.isOpened():
            raise SourceError(f"{self._path} is neither a folder, a bag nor a video that OpenCV can read")
        return capture

    def __iter__(self) -> Iterator[Frame]:
        capture = self._open()
        try:
            index = 0
            while True:
                ok, pixels = capture.read()
                if not ok:
                    return
                time_ns = None if self._period_ns is None else index * self._period_ns
                yield Frame(f"{self._path.name}:{index}", pixels=_rgb(pixels), time_ns=time_ns)
                index += 1
        finally:
            capture.release()

    def close(self) -> None:
        """Every iteration closes its own reader."""


class CameraSource:
    """A camera of the machine. Ends when the camera stops to deliver."""

    live = True

    def __init__(self, device: Path) -> None:
        self.skipped = 0
        self.description = f"camera {device}"
        self._capture = cv2.VideoCapture(str(device), cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise SourceError(f"camera {device} cannot be opened; is it in use, or not a capture device?")

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while True:
            ok, pixels = self._capture.read()
            if not ok:
                return
            yield Frame(f"frame {index}", pixels=_rgb(pixels))
            index += 1

    def close(self) -> None:
        """Release the device."""
        self._capture.release()


def encode(frame: Frame, quality: int = 90) -> tuple[bytes, str]:
    """A frame as the bytes of an image file, and its format; files go through as they are."""
    if frame.encoded is not None:
        return frame.encoded, image_format(frame.encoded)
    assert frame.pixels is not None
    bgr = cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes(), "jpeg"


def _rgb(bgr: Any) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)
