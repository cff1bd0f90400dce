"""``Objects`` to messages. Every message carries the header of the image it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from mca_perception_msgs.msg import (
    DefectAssessment,
    FrameTiming,
    PerceivedObject,
    PerceivedObjects,
    ProductHypothesis,
)
from numpy.typing import NDArray
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import Header
from vision_msgs.msg import (
    BoundingBox2D,
    BoundingBox3D,
    Detection2D,
    Detection2DArray,
    Detection3D,
    Detection3DArray,
    LabelInfo,
    ObjectHypothesisWithPose,
    VisionClass,
)

from mca_perception.objects import Objects
from mca_perception.pipeline.surfaces import OrientedBox, Surface
from mca_perception.ros.defect_messages import DefectRule, to_assessment
from mca_perception.ros.images import to_image_message, with_data

__all__ = [
    "FrameInfo",
    "best_first",
    "defect_of",
    "products_of",
    "stamp_ns",
    "time_message",
    "to_detections",
    "to_detections_3d",
    "to_frame_timing",
    "to_instance_mask",
    "to_label_info",
    "to_object_points",
    "to_perceived_objects",
    "to_products",
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
        defect_rule: how defects are decided on; None when they are not judged.
    """

    header: Header
    container_id: str
    model: str
    sequence: int
    defect_rule: DefectRule | None = None


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


def to_products(objects: Objects, i: int) -> list[ProductHypothesis]:
    """Products of object ``i``, best first."""
    return [ProductHypothesis(product_id=product, score=score) for product, score in products_of(objects, i)]


def to_perceived_objects(
    objects: Objects, frame: FrameInfo, timing: FrameTiming, surfaces: Sequence[Surface | None] | None = None
) -> PerceivedObjects:
    """Everything known about each object; the order of ``objects`` is kept."""
    measured = [None] * len(objects) if surfaces is None else surfaces
    height, width = objects.image_size
    return PerceivedObjects(
        header=frame.header,
        image_width=width,
        image_height=height,
        container_id=frame.container_id,
        model=frame.model,
        sequence=frame.sequence,
        objects=[_perceived_object(objects, i, measured[i], frame.defect_rule) for i in range(len(objects))],
        timing=timing,
    )


def to_detections(objects: Objects, header: Header) -> Detection2DArray:
    """The standard view: ``id`` is the pixel value in the mask; hypotheses are products, else the label."""
    detections = []
    for i in range(len(objects)):
        results = [_hypothesis(name, score) for name, score in _hypotheses(objects, i)]
        detection = Detection2D(header=header, results=results, id=str(int(objects.instance_ids[i])))
        _fill_box(detection.bbox, objects.boxes[i])
        detections.append(detection)
    return Detection2DArray(header=header, detections=detections)


def to_detections_3d(
    objects: Objects, surfaces: Sequence[Surface | None], header: Header
) -> Detection3DArray:
    """The objects that were measured; ``id`` is the pixel value in the mask, hypotheses as in ``to_detections``."""
    detections = []
    for i, surface in enumerate(surfaces):
        if surface is None:
            continue
        box = _box_3d(surface.box)
        results = [_hypothesis(name, score) for name, score in _hypotheses(objects, i)]
        for result in results:
            result.pose.pose = box.center
        detections.append(
            Detection3D(header=header, results=results, bbox=box, id=str(int(objects.instance_ids[i])))
        )
    return Detection3DArray(header=header, detections=detections)


def to_object_points(
    objects: Objects, surfaces: Sequence[Surface | None], image: NDArray[np.uint8], header: Header
) -> PointCloud2:
    """All measured points in one cloud: x, y, z in metres, the colour ``rgb``, and ``id``, the value in the mask.

    Args:
        objects: what was measured.
        surfaces: one per object.
        image: uint8 ``[H, W, 3]`` RGB that the objects were seen in.
        header: of the image.
    """
    found = [(int(objects.instance_ids[i]), s) for i, s in enumerate(surfaces) if s is not None]
    cloud = np.zeros(sum(len(surface.points) for _, surface in found), _POINT)
    if found:
        points = np.concatenate([surface.points for _, surface in found])
        colours = image.reshape(-1, 3)[np.concatenate([surface.pixels for _, surface in found])].astype(
            np.uint32
        )
        cloud["x"], cloud["y"], cloud["z"] = points.T
        cloud["rgb"] = colours[:, 0] << 16 | colours[:, 1] << 8 | colours[:, 2]
        cloud["id"] = np.repeat([identity for identity, _ in found], [len(s.points) for _, s in found])
    kinds = {"x": PointField.FLOAT32, "y": PointField.FLOAT32, "z": PointField.FLOAT32}
    fields = [
        PointField(name=name, offset=4 * place, datatype=kinds.get(name, PointField.UINT32), count=1)
        for place, name in enumerate(_POINT.names or ())
    ]
    message = PointCloud2(
        header=header,
        height=1,
        width=len(cloud),
        fields=fields,
        is_bigendian=False,
        point_step=_POINT.itemsize,
        row_step=_POINT.itemsize * len(cloud),
        is_dense=True,
    )
    return with_data(message, cloud.tobytes())


_POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("id", "<u4")])


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
        stamp: stamp of the source image; the latency is NaN for one of 0, which says nothing.
        received_ns: arrival at the node, node clock.
        published_ns: publication of the result, node clock.
        queue_ms: waiting time in the node.
    """
    return FrameTiming(
        received=time_message(received_ns),
        published=time_message(published_ns),
        queue_ms=queue_ms,
        processing_ms=float(timings_ms.get("total", 0.0)),
        pipeline_latency_ms=(published_ns - stamp_ns(stamp)) / 1e6 if stamp_ns(stamp) else float("nan"),
        **{f"{step}_ms": float(timings_ms.get(step, 0.0)) for step in _STEPS},
    )


def _hypotheses(objects: Objects, i: int) -> list[tuple[str, float]]:
    """Products of an object, else its label."""
    label = objects.label_names[int(objects.labels[i])]
    return products_of(objects, i) or [(label, float(objects.scores[i]))]


def _perceived_object(
    objects: Objects, i: int, surface: Surface | None, rule: DefectRule | None
) -> PerceivedObject:
    mask_id = int(objects.instance_ids[i])
    area, (x, y) = _visible(objects, i)
    # Messages within it are filled, not given: the constructor would make them a second time.
    message = PerceivedObject(
        id=mask_id if objects.track_ids is None else int(objects.track_ids[i]),
        mask_id=mask_id,
        label=objects.label_names[int(objects.labels[i])],
        score=float(objects.scores[i]),
        area=area,
        products=to_products(objects, i),
        has_pose_3d=surface is not None,
    )
    _fill_box(message.bbox, objects.boxes[i])
    message.centroid.x, message.centroid.y = x, y
    message.defect = defect_of(objects, i, rule)
    if surface is not None:
        message.bbox_3d = _box_3d(surface.box)
    return message


def defect_of(objects: Objects, i: int, rule: DefectRule | None) -> DefectAssessment:
    """Whether object ``i`` is defective; NOT_ASSESSED, the message's default, where that was not judged."""
    if objects.defects is None or rule is None or np.isnan(objects.defects[i]).any():
        return DefectAssessment()
    return to_assessment(objects.defects[i], rule)


def _visible(objects: Objects, i: int) -> tuple[int, tuple[float, float]]:
    """Area and mean position of an object's pixels; of its box where there is no mask."""
    x1, y1, x2, y2 = (float(v) for v in objects.boxes[i])
    centre = ((x1 + x2) / 2, (y1 + y2) / 2)
    if objects.instance_mask is None:
        return round((x2 - x1) * (y2 - y1)), centre
    left, top = int(x1), int(y1)
    window = objects.instance_mask[top : int(np.ceil(y2)), left : int(np.ceil(x2))]
    pixels = (window == objects.instance_ids[i]).view(np.uint8)
    if not pixels.size:
        return 0, centre
    columns = cv2.reduce(pixels, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[0]
    rows = cv2.reduce(pixels, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[:, 0]
    area = int(columns.sum())
    if not area:
        return 0, centre
    mean_x, mean_y = (float(counts @ np.arange(len(counts))) / area for counts in (columns, rows))
    return area, (mean_x + left + 0.5, mean_y + top + 0.5)  # boxes count from pixel edges


def _fill_box(box: BoundingBox2D, xyxy: np.ndarray[Any, Any]) -> None:
    x1, y1, x2, y2 = (float(v) for v in xyxy)
    box.size_x, box.size_y = x2 - x1, y2 - y1
    box.center.position.x, box.center.position.y = (x1 + x2) / 2, (y1 + y2) / 2


def _box_3d(box: OrientedBox) -> BoundingBox3D:
    x, y, z = (float(value) for value in box.centre)
    qx, qy, qz, qw = box.quaternion
    sx, sy, sz = (float(value) for value in box.size)
    pose = Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))
    return BoundingBox3D(center=pose, size=Vector3(x=sx, y=sy, z=sz))


def _hypothesis(name: str, score: float) -> ObjectHypothesisWithPose:
    result = ObjectHypothesisWithPose()
    result.hypothesis.class_id, result.hypothesis.score = name, score
    return result
