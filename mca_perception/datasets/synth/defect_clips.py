"""Short clips of a pick turning on the tool, in ARMBench's layout of defect videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from mca_perception.datasets.armbench_defect_videos import FRAME_CROP
from mca_perception.datasets.synth import writer
from mca_perception.datasets.synth.camera import rotation
from mca_perception.datasets.synth.catalogue import random_orientation
from mca_perception.datasets.synth.defect_items import draw_item, draw_light
from mca_perception.datasets.synth.defect_scenes import (
    CAMERAS,
    MULTI_PICK,
    PACKAGE_DEFECT,
    Held,
    Photograph,
    Station,
    arrange,
    disguised,
    scale_of,
)
from mca_perception.datasets.synth.textures import Image
from mca_perception.errors import DatasetError

FRAMES = (14, 24)
FRAMES_PER_SECOND = 10
_FRAME = (720, 960)
_SCENE = (285, 375)


def clip_label(held: Held) -> str | None:
    """Label of a clip: nominal, open, or deconstruction when parts came off; None for several objects."""
    if held.label == MULTI_PICK:
        return None
    if held.label != PACKAGE_DEFECT:
        return "nominal"
    return "deconstruction" if len(held.items) > 1 else "open"


def film(held: Held, station: Station, rng: np.random.Generator) -> list[Photograph]:
    """Photograph a pick while it turns by up to half a turn; loose parts move away from the package."""
    camera = CAMERAS[int(rng.integers(len(CAMERAS)))]
    background, look = station.frame(camera)
    background = np.asarray(cv2.resize(background, _SCENE[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    seed, count = int(rng.integers(2**62)), int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    light = draw_light(rng)
    bases = [random_orientation(item.kind, rng, 0.35) for item in held.items]
    axis = rng.normal(size=3)
    angle = float(rng.uniform(0.8, np.pi)) * (1 if rng.random() < 0.5 else -1)
    scale = scale_of(held, bases, _SCENE, camera, rng)
    photographs = []
    for share in np.linspace(0, 1, count):
        turn = rotation(axis, angle * float(share))
        drawn = []
        for number, (item, base) in enumerate(zip(held.items, bases, strict=True)):
            # The same draws for every frame: wrinkles and stickers stay where they are.
            picture = draw_item(item, turn @ base, scale, light, np.random.default_rng([seed, number]))
            drawn.append(disguised(held, picture, np.random.default_rng([seed, number, 1])))
        apart = replace(held, spread=held.spread * (0.2 + 0.8 * float(share)))
        still = np.random.default_rng([seed, len(drawn), 2])
        photographs.append(arrange(apart, drawn, background.copy(), camera, look, still))
    return photographs


def write_clip(root: Path, name: str, held: Held, station: Station, rng: np.random.Generator) -> str | None:
    """Write the clip of a pick and its annotation below ``root``; returns its label, None for several objects.

    The annotation also says in which frame the defect shows first, ``first_visible``, absent where it never does.
    """
    label = clip_label(held)
    if label is None:
        return None
    photographs = film(held, station, rng)
    write_video(root / "videos" / f"{name}.mp4", [photograph.image for photograph in photographs])
    shown = [number for number, photograph in enumerate(photographs) if photograph.shown]
    if label != "nominal" and not shown:
        label = "nominal"
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    entry = {"id": name, "label": label, "frames": len(photographs)}
    writer.write_json(
        root / "annotations" / f"{name}.json", entry | ({"first_visible": shown[0]} if shown else {})
    )
    return label


def write_video(path: Path, images: list[Image]) -> None:
    """Write scenes as a video of 960 x 720, each where the published preprocessing cuts it out; atomic.

    Raises:
        DatasetError: OpenCV has no MPEG-4 encoder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part.mp4")
    stream = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"mp4v"), FRAMES_PER_SECOND, _FRAME[::-1])
    if not stream.isOpened():
        raise DatasetError(
            "this OpenCV cannot write MPEG-4; install opencv-python-headless, or leave out --videos"
        )
    x1, y1, x2, y2 = FRAME_CROP
    for image in images:
        frame = np.full((*_FRAME, 3), 40, np.uint8)
        frame[y1:y2, x1:x2] = cv2.resize(image, (x2 - x1, y2 - y1), interpolation=cv2.INTER_LINEAR)
        stream.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    stream.release()
    part.replace(path)
