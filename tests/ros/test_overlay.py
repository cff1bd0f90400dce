import numpy as np
import pytest

pytest.importorskip("rclpy")

from mca_perception.objects import Objects
from mca_perception.ros.overlay import draw_overlay, object_colour


def make_objects(height: int, width: int, boxes: list[list[float]]) -> Objects:
    mask = np.zeros((height, width), np.uint16)
    for i, (x1, y1, x2, y2) in enumerate(boxes, 1):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = i
    return Objects(
        image_size=(height, width),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.full(len(boxes), 0.9, np.float32),
        labels=np.zeros(len(boxes), np.int64),
        label_names=("Object",),
        instance_mask=mask,
    )


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((96, 160), 1280, (576, 960)),
        ((2048, 2448), 1280, (1071, 1280)),
        ((1000, 1100), 1280, (1000, 1100)),
        ((96, 160), 64, (38, 64)),
    ],
)
def test_size_follows_the_limits(size: tuple[int, int], max_side: int, expected: tuple[int, int]) -> None:
    picture = draw_overlay(np.zeros((*size, 3), np.uint8), make_objects(*size, []), max_side=max_side)
    assert picture.shape == (*expected, 3)


def test_objects_are_tinted_and_the_image_is_left_alone() -> None:
    image = np.full((960, 960, 3), 100, np.uint8)
    image.flags.writeable = False
    picture = draw_overlay(image, make_objects(960, 960, [[300, 300, 700, 700]]))
    expected = 0.7 * 100 + 0.3 * np.array(object_colour(1))
    assert np.abs(picture[600, 600].astype(float) - expected).max() <= 1
    assert picture[100, 100].tolist() == [100, 100, 100]
    assert (image == 100).all()


def test_labels_do_not_cover_each_other_or_leave_the_picture() -> None:
    boxes = [[900.0, 2.0, 958.0, 60.0], [890.0, 4.0, 950.0, 70.0], [2.0, 900.0, 30.0, 958.0]]
    picture = draw_overlay(np.zeros((960, 960, 3), np.uint8), make_objects(960, 960, boxes))
    for identity in (1, 2, 3):
        chip = (picture == object_colour(identity)).all(axis=2)
        assert chip.sum() > 500


@pytest.mark.parametrize(
    "objects",
    [
        make_objects(960, 960, []),
        make_objects(960, 960, [[0, 0, 960, 960]]),
        make_objects(960, 960, [[5, 5, 5, 5]]),
        make_objects(960, 960, [[5, 5, 50, 50]]).replace(instance_mask=None),
        make_objects(960, 960, [[5, 5, 50, 50]]).replace(
            product_ids=[("Äpfel-und-Birnen-1234567890",)], product_scores=np.ones((1, 1), np.float32)
        ),
    ],
)
def test_unusual_objects_are_drawn_without_failing(objects: Objects) -> None:
    assert draw_overlay(np.zeros((960, 960, 3), np.uint8), objects).shape == (960, 960, 3)


def test_neighbouring_ids_have_different_colours() -> None:
    colours = np.array([object_colour(i) for i in range(1, 9)], float)
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2)
    assert distances[~np.eye(8, dtype=bool)].min() > 60
