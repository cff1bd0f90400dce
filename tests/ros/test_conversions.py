import numpy as np
import pytest

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time
from mca_perception_msgs.msg import FrameTiming
from std_msgs.msg import Header

from mca_perception.objects import Objects
from mca_perception.ros import conversions

HEADER = Header(stamp=Time(sec=12, nanosec=345), frame_id="tote_camera")
FRAME = conversions.FrameInfo(HEADER, "tote-7", "nano@0123", 4)


def two_objects(**changes: object) -> Objects:
    """A square with id 5 and an L-shape with id 9."""
    mask = np.zeros((20, 30), np.uint16)
    mask[2:6, 3:7] = 5
    mask[10:18, 10:12] = 9
    mask[16:18, 12:20] = 9
    return Objects(
        image_size=(20, 30),
        boxes=np.array([[3, 2, 7, 6], [10, 10, 20, 18]], np.float32),
        scores=np.array([0.5, 0.75], np.float32),
        labels=np.zeros(2, np.int64),
        label_names=("Object",),
        instance_mask=mask,
        instance_ids=np.array([5, 9], np.uint16),
    ).replace(**changes)


def with_products() -> Objects:
    return two_objects(
        product_ids=[("A", "B"), ()],
        product_scores=np.array([[0.5, 0.25], [np.nan, np.nan]], np.float32),
    )


def test_objects_carry_box_area_centroid_and_products() -> None:
    message = conversions.to_perceived_objects(with_products(), FRAME, FrameTiming(queue_ms=3.0))
    assert message.header == HEADER
    assert (message.image_height, message.image_width) == (20, 30)
    assert (message.container_id, message.model, message.sequence) == ("tote-7", "nano@0123", 4)
    assert message.timing.queue_ms == 3.0
    square, angle = message.objects
    assert (square.id, square.mask_id, square.label, square.score) == (5, 5, "Object", 0.5)
    assert (square.bbox.center.position.x, square.bbox.center.position.y) == (5.0, 4.0)
    assert (square.bbox.size_x, square.bbox.size_y) == (4.0, 4.0)
    assert (square.area, square.centroid.x, square.centroid.y) == (16, 5.0, 4.0)
    assert [(p.product_id, p.score) for p in square.products] == [("A", 0.5), ("B", 0.25)]
    assert angle.area == 32
    ys, xs = np.nonzero(with_products().mask(1))
    assert (angle.centroid.x, angle.centroid.y) == (xs.mean() + 0.5, ys.mean() + 0.5)
    assert list(angle.products) == []
    assert not square.has_pose_3d
    assert square.defect.decision == square.defect.NOT_ASSESSED


def test_ids_follow_the_track_while_mask_ids_stay() -> None:
    message = conversions.to_perceived_objects(
        two_objects(track_ids=np.array([101, 102], np.int64)), FRAME, FrameTiming()
    )
    assert [(item.id, item.mask_id) for item in message.objects] == [(101, 5), (102, 9)]


def test_objects_without_masks_use_their_boxes() -> None:
    message = conversions.to_perceived_objects(two_objects(instance_mask=None), FRAME, FrameTiming())
    assert [item.area for item in message.objects] == [16, 80]
    assert message.objects[1].centroid.x == 15.0
    mask = conversions.to_instance_mask(two_objects(instance_mask=None), HEADER)
    assert not any(mask.data)


def test_detections_name_the_pixel_value_and_the_best_product() -> None:
    array = conversions.to_detections(with_products(), HEADER)
    assert array.header == HEADER
    first, second = array.detections
    assert (first.id, second.id) == ("5", "9")
    assert first.header == HEADER
    assert [(r.hypothesis.class_id, r.hypothesis.score) for r in first.results] == [("A", 0.5), ("B", 0.25)]
    assert [(r.hypothesis.class_id, r.hypothesis.score) for r in second.results] == [("Object", 0.75)]
    assert first.bbox.center.position.x == 5.0


def test_mask_is_mono16_with_the_ids_as_values() -> None:
    message = conversions.to_instance_mask(two_objects(), HEADER)
    assert (message.encoding, message.header, message.step) == ("mono16", HEADER, 60)
    values = np.frombuffer(message.data, "<u2").reshape(20, 30)
    np.testing.assert_array_equal(values, two_objects().instance_mask)


def test_best_first_keeps_the_pairs_together() -> None:
    ordered = conversions.best_first(with_products())
    assert ordered.instance_ids.tolist() == [9, 5]
    assert ordered.product_ids == [(), ("A", "B")]


def test_no_objects_is_a_message_too() -> None:
    nothing = Objects.empty((4, 6), ("Object",))
    assert list(conversions.to_perceived_objects(nothing, FRAME, FrameTiming()).objects) == []
    assert len(conversions.to_instance_mask(nothing, HEADER).data) == 4 * 6 * 2


def test_label_info_lists_the_classes() -> None:
    message = conversions.to_label_info(("Object", "Tote"), 0.25, HEADER)
    assert [(c.class_id, c.class_name) for c in message.class_map] == [(0, "Object"), (1, "Tote")]
    assert message.threshold == 0.25


def test_timing_counts_from_the_stamp() -> None:
    timing = conversions.to_frame_timing(
        {"backbone": 4.0, "total": 9.0},
        stamp=Time(sec=10, nanosec=0),
        received_ns=10_001_000_000,
        published_ns=10_250_000_000,
        queue_ms=2.0,
    )
    assert timing.pipeline_latency_ms == 250.0
    assert (timing.backbone_ms, timing.processing_ms, timing.queue_ms, timing.letterbox_ms) == (
        4.0,
        9.0,
        2.0,
        0.0,
    )
    assert conversions.stamp_ns(timing.received) == 10_001_000_000
