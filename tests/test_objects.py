from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mca_perception.objects import Objects

LABELS = ("Object", "Tote")


def make_objects(**changes) -> Objects:
    mask = np.zeros((20, 30), np.uint16)
    mask[2:6, 3:9] = 5
    mask[10:15, 10:20] = 2
    mask[0:2, 0:2] = 9
    fields = {
        "image_size": (20, 30),
        "boxes": np.array([[3, 2, 9, 6], [10, 10, 20, 15], [0, 0, 2, 2]], np.float32),
        "scores": np.array([0.9, 0.8, 0.5], np.float32),
        "labels": np.array([0, 1, 0], np.int64),
        "label_names": LABELS,
        "instance_mask": mask,
        "instance_ids": np.array([5, 2, 9], np.uint16),
        "track_ids": np.array([7, 8, 9], np.int64),
        "embeddings": np.eye(3, 4, dtype=np.float32),
        "product_ids": [("a", "b"), (), ("c",)],
        "product_scores": np.array([[0.9, 0.1], [np.nan, np.nan], [0.4, np.nan]], np.float32),
        "defects": np.array([[1, 0, 0], [np.nan] * 3, [0.2, 0.3, 0.5]], np.float32),
        "points3d": np.full((3, 3), np.nan, np.float32),
    }
    return Objects(**{**fields, **changes})


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0], [2, 0]),
        ([True, False, True], [0, 2]),
        (np.array([False, False, False]), []),
        (np.array([1, 1]), None),
        ([], []),
    ],
)
def test_indexing_selects_every_field(index, expected) -> None:
    objects = make_objects()
    if expected is None:
        with pytest.raises(ValueError, match="instance_ids must be unique"):
            objects[index]
        return
    chosen = objects[index]
    assert len(chosen) == len(expected)
    assert chosen.product_ids == [objects.product_ids[i] for i in expected]
    for name in ("boxes", "scores", "labels", "instance_ids", "track_ids", "embeddings", "defects"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(objects, name)[expected], err_msg=name)
    assert chosen.instance_mask is objects.instance_mask


@pytest.mark.parametrize("index", [3, -4, [True, False]])
def test_indexing_beyond_the_end_is_an_index_error(index) -> None:
    with pytest.raises(IndexError):
        make_objects()[index]


def test_iteration_yields_single_objects() -> None:
    assert [o.to_rows()[0]["id"] for o in make_objects()] == [5, 2, 9]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"image_size": (20, 0)}, "image_size"),
        ({"image_size": (20.0, 30)}, "image_size"),
        ({"image_size": (21, 30)}, "instance_mask"),
        ({"boxes": np.zeros((3, 4))}, "boxes"),
        ({"boxes": np.zeros((2, 4), np.float32)}, "boxes"),
        ({"boxes": np.array([[0, 0, np.nan, 1]] * 3, np.float32)}, "boxes"),
        ({"boxes": np.array([[5, 0, 1, 1]] * 3, np.float32)}, "boxes"),
        ({"scores": np.array([0.1, 0.2, 1.5], np.float32)}, "scores"),
        ({"scores": np.array([0.1, 0.2, np.nan], np.float32)}, "scores"),
        ({"labels": np.array([0, 1, 2])}, "labels"),
        ({"labels": np.array([0, 1, 1], np.int32)}, "labels"),
        ({"instance_mask": np.zeros((20, 30), np.uint8)}, "instance_mask"),
        ({"instance_ids": np.array([1, 2, 2], np.uint16)}, "instance_ids"),
        ({"instance_ids": np.array([1, 0, 2], np.uint16)}, "instance_ids"),
        ({"instance_ids": np.array([1, 2], np.uint16)}, "instance_ids"),
        ({"track_ids": np.array([1, 2], np.int64)}, "track_ids"),
        ({"embeddings": np.full((3, 4), np.inf, np.float32)}, "embeddings"),
        ({"embeddings": np.zeros(3, np.float32)}, "embeddings"),
        ({"product_scores": None}, "product_ids"),
        ({"product_ids": [("a",), ("b",)]}, "product_ids"),
        ({"product_scores": np.zeros((3, 2), np.float32)}, "product_scores"),
        ({"product_ids": [("a", "b", "c"), (), ("c",)]}, "product_scores"),
        ({"defects": np.full((3, 3), 2, np.float32)}, "defects"),
        ({"defects": np.zeros((3, 2), np.float32)}, "defects"),
        ({"points3d": np.zeros((3, 3))}, "points3d"),
    ],
)
def test_broken_invariants_name_the_field(changes, field) -> None:
    with pytest.raises(ValueError, match=field):
        make_objects(**changes)


def test_ids_are_numbered_when_not_given() -> None:
    objects = make_objects(instance_ids=np.zeros(0, np.uint16))
    np.testing.assert_array_equal(objects.instance_ids, [1, 2, 3])


def test_masks_areas_and_rle_agree() -> None:
    objects = make_objects()
    assert objects.areas().tolist() == [24, 50, 4]
    for i in range(3):
        decoded = coco_mask.decode(objects.rle(i)).astype(bool)
        np.testing.assert_array_equal(decoded, objects.mask(i))
        assert decoded.sum() == objects.areas()[i]


def test_without_masks_areas_come_from_boxes() -> None:
    objects = make_objects(instance_mask=None)
    assert objects.areas().tolist() == [24, 50, 4]
    with pytest.raises(ValueError, match="boxes only"):
        objects.mask(0)


def test_to_coco_uses_category_names() -> None:
    entries = make_objects().to_coco(17, {"Object": 4, "Tote": 2})
    assert [e["category_id"] for e in entries] == [4, 2, 4]
    assert entries[0]["bbox"] == [3, 2, 6, 4]
    assert {e["image_id"] for e in entries} == {17}
    assert coco_mask.area(entries[1]["segmentation"]) == 50
    assert [e["category_id"] for e in make_objects().to_coco(1)] == [1, 2, 1]


def test_to_rows_is_flat_and_plain() -> None:
    first, second, _ = make_objects().to_rows()
    assert first == {
        "id": 5,
        "track_id": 7,
        "label": "Object",
        "score": pytest.approx(0.9),
        "x1": 3.0,
        "y1": 2.0,
        "x2": 9.0,
        "y2": 6.0,
        "area": 24,
        "product_id": "a",
        "product_score": pytest.approx(0.9),
    }
    assert (second["product_id"], second["product_score"]) == (None, None)


def test_empty_has_every_shape() -> None:
    objects = Objects.empty(
        (4, 5),
        LABELS,
        instance_mask=np.zeros((4, 5), np.uint16),
        product_ids=[],
        product_scores=np.zeros((0, 5), np.float32),
    )
    assert len(objects) == 0
    assert objects.to_rows() == []
    assert objects.to_coco(1) == []
    assert objects.areas().shape == (0,)
    assert len(objects[[]]) == 0


def test_replace_checks_again() -> None:
    assert make_objects().replace(timings_ms={"total": 1.0}).timings_ms == {"total": 1.0}
    with pytest.raises(ValueError, match="boxes"):
        make_objects().replace(scores=np.zeros(2, np.float32))
