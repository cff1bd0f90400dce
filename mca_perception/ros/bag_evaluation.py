"""Runs the pipeline over every image of a recording: the same recording and model give the same result."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mca_perception_msgs.msg import FrameTiming
from numpy.typing import NDArray
from std_msgs.msg import Header

from mca_perception.errors import InvalidImageError, SourceError
from mca_perception.objects import Objects
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.ros import conversions
from mca_perception.ros.images import decode_encoded, to_compressed_message, wrap_encoded
from mca_perception.ros.overlay import draw_overlay
from mca_perception.ros.recordings import Recording
from mca_perception.ros.sources import Frame, Source, encode
from mca_perception.ros.statistics import percentiles
from mca_perception.tracking import ByteTracker

__all__ = ["BagRun", "evaluate_bag"]


@dataclass
class BagRun:
    """What was found.

    Attributes:
        frames: one entry per image, in the order of the recording: ``frame`` number from 0, ``stamp_ns``, ``time_ns``,
            size, and ``objects``.
        detections: the same objects as COCO results; ``image_id`` is the frame's number.
        skipped: images that could not be used, by cause.
        damage: where and why the recording could be read no further; empty when it is whole.
        times_ms: milliseconds per frame by stage.
    """

    frames: list[dict[str, Any]] = field(default_factory=list)
    detections: list[dict[str, Any]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    damage: str = ""
    times_ms: dict[str, list[float]] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """Counts and times; detection quality needs labels and is not in here."""
        counts = [len(frame["objects"]) for frame in self.frames]
        return {
            "frames": len(self.frames),
            "skipped": dict(self.skipped),
            **({"damage": self.damage} if self.damage else {}),
            "objects": sum(counts),
            "objects_per_frame": round(float(np.mean(counts)), 3) if counts else 0.0,
            "frames_without_objects": counts.count(0),
            "latency_ms": {name: percentiles(values) for name, values in self.times_ms.items()},
        }


def evaluate_bag(
    source: Source,
    pipeline: PerceptionPipeline,
    *,
    annotated: Path | None = None,
    tracking: bool = False,
    limit: int | None = None,
) -> BagRun:
    """Perceive every image of a recording, one after the other, at whatever pace the machine has.

    Args:
        source: the recording.
        pipeline: what perceives.
        annotated: folder for a new recording in mcap with the images, overlays, masks, objects and detections, at the
            recorded times and with the recorded headers; None for none.
        tracking: give objects ids that last over frames.
        limit: stop after so many images.

    Raises:
        SourceError: the annotated recording cannot be written, or no image of a damaged one can be read.
    """
    run = BagRun()
    tracker = ByteTracker() if tracking else None
    model = f"{pipeline.bundle.manifest.name}@{pipeline.bundle.fingerprint}"
    with contextlib.ExitStack() as stack:
        recording = stack.enter_context(Recording(annotated)) if annotated else None
        for number, frame in enumerate(_frames(source, run)):
            if limit is not None and number >= limit:
                break
            try:
                image = frame.pixels if frame.pixels is not None else decode_encoded(frame.encoded or b"")
                objects = conversions.best_first(pipeline.perceive(image, manifest=frame.product_ids))
            except InvalidImageError as error:
                run.skipped[getattr(error, "cause", "invalid_image")] += 1
                continue
            if tracker is not None:
                ids = tracker.update(objects.boxes, objects.scores, objects.labels)
                objects = objects.replace(track_ids=ids)
            _note(run, number, frame, objects)
            if recording is not None:
                info = conversions.FrameInfo(_header(frame), frame.container_id, model, number)
                _record(recording, frame, image, objects, info)
    if source.skipped:
        run.skipped["unreadable"] += source.skipped
    return run


def _frames(source: Source, run: BagRun) -> Iterator[Frame]:
    """The images of a recording, up to where it is damaged."""
    try:
        yield from source
    except SourceError as error:
        if not run.frames:
            raise
        run.damage = str(error)


def _note(run: BagRun, number: int, frame: Frame, objects: Objects) -> None:
    rows = objects.to_rows()
    for i, row in enumerate(rows):
        row["products"] = [
            {"product_id": product, "score": score} for product, score in conversions.products_of(objects, i)
        ]
    height, width = objects.image_size
    run.frames.append(
        {
            "frame": number,
            "stamp_ns": frame.stamp_ns,
            "time_ns": frame.time_ns,
            "width": width,
            "height": height,
            "objects": rows,
        }
    )
    run.detections += objects.to_coco(number)
    for stage, milliseconds in objects.timings_ms.items():
        run.times_ms.setdefault(stage, []).append(milliseconds)


def _record(
    recording: Recording,
    frame: Frame,
    image: NDArray[np.uint8],
    objects: Objects,
    info: conversions.FrameInfo,
) -> None:
    time_ns, header = frame.time_ns or 0, info.header
    data, image_format = encode(frame)
    messages: dict[str, Any] = {
        "image/compressed": wrap_encoded(data, header, image_format),
        "overlay/compressed": to_compressed_message(draw_overlay(image, objects), header, quality=85),
        "instance_mask": conversions.to_instance_mask(objects, header),
        "objects": conversions.to_perceived_objects(objects, info, FrameTiming()),
        "detections": conversions.to_detections(objects, header),
    }
    for topic, message in messages.items():
        recording.write(f"/perception/{topic}", message, time_ns)


def _header(frame: Frame) -> Header:
    return Header(stamp=conversions.time_message(frame.stamp_ns or 0), frame_id=frame.frame_id)
