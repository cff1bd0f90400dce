"""``Objects`` to messages. Every message carries the header of the image it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from mca_perception_msgs.msg import FrameTiming, PerceivedObject, PerceivedObjects, ProductHypothesis
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import (
    BoundingBox2D,
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesisWithPose,
    Point2D,
    VisionClass,
)

from mca_perception.objects import Objects
from mca_perception.ros.images import to_image_message

__all__ = [
    "FrameInfo",
    "best_first",
    "products_of",
    "stamp_ns",
    "time_message",
    "to_detections",
    "to_frame_timing",
    "to_instance_mask",
    "to_label_info",
    "to_perceived_objects",
]

_STEPS = ("letterbox", "backbone", "segmentation", "postprocess", "identification")


@dataclass(frozen=True)
class FrameInfo:
    """What is known about a frame besides its objects.

    Attributes:
        header: header of the source image.
        container_id: container whose products limited the identification; empty for none.
        model: ``name@fingerprint``.
        sequence: number of the result since activation.
    """

    header: Header
    container_id: str
    model: str
    sequence: int


def stamp_ns(stamp: Time) -> int:
    """Nanoseconds of a time message."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def time_message(nanoseconds: int) -> Time:
    """Time message of nanoseconds."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Time(sec=seconds, nanosec=rest)


def best_first(objects: Objects) -> Objects:
    """The same objects, highest score first."""
    return objects[np.argsort(-objects.scores, kind="stable")]


def products_of(objects: Objects, i: int) -> list[tuple[str, float]]:
    """Products of object ``i`` with their similarity, best first."""
    if objects.product_ids is None or objects.product_scores is None:
        return []
    scores = objects.product_scores[i]
    return [(product, float(score)) for product, score in zip(objects.product_ids[i], scores, strict=False)]


def to_perceived_objects(objects: Objects, frame: FrameInfo, timing: FrameTiming) -> PerceivedObjects:
    """Everything known about each object; the order of ``objects`` is kept."""
    height, width = objects.image_size
    return PerceivedObjects(
        header=frame.header,
        image_width=width,
        image_height=height,
        container_id=frame.container_id,
        model=frame.model,
        sequence=frame.sequence,
        objects=[_perceived_object(objects, i) for i in range(len(objects))],
        timing=timing,
    )


def to_detections(objects: Objects, header: Header) -> Detection2DArray:
    """The standard view: ``id`` is the pixel value in the mask; hypotheses are products, else the label."""
    detections = []
    for i in range(len(objects)):
        label = objects.label_names[int(objects.labels[i])]
        hypotheses = products_of(objects, i) or [(label, float(objects.scores[i]))]
        detections.append(
            Detection2D(
                header=header,
                results=[_hypothesis(name, score) for name, score in hypotheses],
                bbox=_box(objects.boxes[i]),
                id=str(int(objects.instance_ids[i])),
            )
        )
    return Detection2DArray(header=header, detections=detections)


def to_instance_mask(objects: Objects, header: Header) -> Image:
    """Id image, ``mono16``: 0 is background, k the object with ``mask_id`` k; all 0 without masks."""
    mask = objects.instance_mask
    if mask is None:
        mask = np.zeros(objects.image_size, np.uint16)
    return to_image_message(mask, "mono16", header)


def to_label_info(label_names: tuple[str, ...], threshold: float, header: Header) -> LabelInfo:
    """Names of the classes, and the score from which on an object is reported."""
    classes = [VisionClass(class_id=i, class_name=name) for i, name in enumerate(label_names)]
    return LabelInfo(header=header, class_map=classes, threshold=threshold)


def to_frame_timing(
    timings_ms: Mapping[str, float], *, stamp: Time, received_ns: int, published_ns: int, queue_ms: float
) -> FrameTiming:
    """Where the time of one frame went.

    Args:
        timings_ms: milliseconds by pipeline step; missing steps count as 0.
        stamp: stamp of the source image.
        received_ns: arrival at the node, node clock.
        published_ns: publication of the result, node clock.
        queue_ms: waiting time in the node.
    """
    return FrameTiming(
        received=time_message(received_ns),
        published=time_message(published_ns),
        queue_ms=queue_ms,
        processing_ms=float(timings_ms.get("total", 0.0)),
        pipeline_latency_ms=(published_ns - stamp_ns(stamp)) / 1e6,
        **{f"{step}_ms": float(timings_ms.get(step, 0.0)) for step in _STEPS},
    )


def _perceived_object(objects: Objects, i: int) -> PerceivedObject:
    mask_id = int(objects.instance_ids[i])
    area, centroid = _visible(objects, i)
    return PerceivedObject(
        id=mask_id if objects.track_ids is None else int(objects.track_ids[i]),
        mask_id=mask_id,
        label=objects.label_names[int(objects.labels[i])],
        score=float(objects.scores[i]),
        bbox=_box(objects.boxes[i]),
        area=area,
        centroid=Point2D(x=centroid[0], y=centroid[1]),
        products=[
            ProductHypothesis(product_id=product, score=score) for product, score in products_of(objects, i)
        ],
    )


def _visible(objects: Objects, i: int) -> tuple[int, tuple[float, float]]:
    """Area and mean position of an object's pixels; of its box where there is no mask."""
    x1, y1, x2, y2 = (float(v) for v in objects.boxes[i])
    centre = ((x1 + x2) / 2, (y1 + y2) / 2)
    if objects.instance_mask is None:
        return round((x2 - x1) * (y2 - y1)), centre
    left, top = int(x1), int(y1)
    window = objects.instance_mask[top : int(np.ceil(y2)), left : int(np.ceil(x2))]
    pixels = (window == objects.instance_ids[i]).view(np.uint8)
    moments: dict[str, Any] = dict(cv2.moments(pixels, binaryImage=True)) if pixels.size else {"m00": 0}
    if not moments["m00"]:
        return 0, centre
    # Moments count from pixel centres, boxes from pixel edges.
    mean = (moments["m10"] / moments["m00"] + left + 0.5, moments["m01"] / moments["m00"] + top + 0.5)
    return int(moments["m00"]), mean


def _box(xyxy: np.ndarray[Any, Any]) -> BoundingBox2D:
    x1, y1, x2, y2 = (float(v) for v in xyxy)
    box = BoundingBox2D(size_x=x2 - x1, size_y=y2 - y1)
    box.center.position.x, box.center.position.y = (x1 + x2) / 2, (y1 + y2) / 2
    return box


def _hypothesis(name: str, score: float) -> ObjectHypothesisWithPose:
    result = ObjectHypothesisWithPose()
    result.hypothesis.class_id, result.hypothesis.score = name, score
    return result
