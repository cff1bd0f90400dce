from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mca_perception.datasets.coco import Annotation, ImageRecord
from mca_perception.segmentation.difficulty import describe_difficulty


def record(number: int, boxes: list[tuple[float, float, float, float]]) -> ImageRecord:
    annotations = tuple(
        Annotation(i, "Object", [], b, (b[2] - b[0]) * (b[3] - b[1])) for i, b in enumerate(boxes)
    )
    tote = Annotation(99, "Tote", [], (0, 0, 100, 100), 10_000)
    return ImageRecord(number, Path("x"), 100, 100, (*annotations, tote))


RECORDS = [record(1, [(0, 0, 10, 10), (5, 0, 15, 10), (50, 50, 90, 90)]), record(2, [(0, 0, 50, 50)])]


def test_figures_of_a_known_set() -> None:
    figures = describe_difficulty(RECORDS, ["Object"])
    assert figures["objects"] == 4
    assert figures["objects_per_image_mean"] == 2
    assert figures["objects_per_image_max"] == 3
    assert figures["small_objects_share"] == 0.5
    assert figures["objects_with_overlapping_box_share"] == 0.5
    assert figures["largest_box_iou_mean"] == pytest.approx((1 / 3 + 1 / 3) / 4)
    assert figures["occluded_share"] is None
    assert figures["objects_with_known_occlusion"] == 0


def test_occlusion_is_told_where_the_annotations_tell_it() -> None:
    first, second, *others = RECORDS[0].annotations
    told = (replace(first, visible_fraction=0.6), replace(second, visible_fraction=0.95), *others)
    figures = describe_difficulty([replace(RECORDS[0], annotations=told)], ["Object"])
    assert figures["occluded_share"] == 0.5
    assert figures["objects_with_known_occlusion"] == 2


def test_set_without_objects_has_no_figures() -> None:
    figures = describe_difficulty([record(1, [])], ["Object"])
    assert figures["objects"] == figures["objects_per_image_max"] == 0
    assert figures["small_objects_share"] is figures["object_area_median"] is None


def test_crowds_are_no_objects() -> None:
    crowd = replace(RECORDS[1].annotations[0], is_crowd=True)
    assert describe_difficulty([replace(RECORDS[1], annotations=(crowd,))], ["Object"])["objects"] == 0
