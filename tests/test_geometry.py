from __future__ import annotations

import cv2
import numpy as np
import pytest

from mca_perception.geometry import Letterbox

SIZES = [(480, 640), (333, 517), (2048, 2448), (1, 1), (1, 900), (900, 1), (31, 1000), (256, 320)]


@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize("input_size", [(256, 320), (224, 224)])
def test_boxes_return_to_where_they_came_from(image_size, input_size) -> None:
    letterbox = Letterbox.fit(image_size, input_size)
    height, width = image_size
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (50, 2, 2)), axis=1) * [width, height]
    boxes = corners.reshape(50, 4).astype(np.float32)

    back = letterbox.to_image(letterbox.to_input(boxes))

    np.testing.assert_allclose(back, boxes, rtol=1e-5, atol=max(image_size) * 1e-6)
    assert back.dtype == np.float32


@pytest.mark.parametrize("image_size", SIZES)
def test_input_is_filled_centred_and_padded_with_grey(image_size) -> None:
    letterbox = Letterbox.fit(image_size, (256, 320))
    output = letterbox.apply(np.full((*image_size, 3), 200, np.uint8))

    assert output.shape == (256, 320, 3)
    rows, columns = np.nonzero(output[..., 0] == 200)
    (height, width) = letterbox.resized_size
    assert (rows.min(), columns.min()) == (letterbox.pad_top, letterbox.pad_left)
    assert (rows.max() + 1 - rows.min(), columns.max() + 1 - columns.min()) == (height, width)
    assert (height, width)[0] == 256 or (height, width)[1] == 320
    assert (output == 127).sum() == output.size - 3 * height * width


def test_drawn_rectangle_lands_where_its_box_is_mapped() -> None:
    image = np.zeros((301, 447), np.uint8)
    image[50:150, 100:300] = 255
    letterbox = Letterbox.fit(image.shape, (512, 512))

    rows, columns = np.nonzero(letterbox.apply(image, padding=0) > 127)

    expected = letterbox.to_input(np.array([[100, 50, 300, 150]], np.float32))[0]
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize("image_size", [(1080, 1920), (2048, 2448), (1079, 1921), (4320, 7680)])
def test_large_images_become_their_area_averages(image_size) -> None:
    image = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (*image_size, 3), np.uint8), (0, 0), sigmaX=3
    )
    letterbox = Letterbox.fit(image_size, (256, 256))
    (height, width), top, left = letterbox.resized_size, letterbox.pad_top, letterbox.pad_left

    found = letterbox.apply(image)[top : top + height, left : left + width].astype(np.int16)

    expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    assert np.abs(found - expected).mean() < 0.5
    assert np.abs(found - expected).max() <= 4


def test_nearest_keeps_label_values() -> None:
    labels = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000
    output = Letterbox.fit((3, 4), (32, 32)).apply(labels, padding=0, nearest=True)
    assert output.dtype == np.uint16
    assert set(np.unique(output)) == set(labels.ravel())


def test_to_image_clips_to_the_image() -> None:
    letterbox = Letterbox.fit((100, 200), (64, 64))
    np.testing.assert_array_equal(
        letterbox.to_image(np.array([[-50, -50, 500, 500]], np.float32)), [[0, 0, 200, 100]]
    )


@pytest.mark.parametrize(("image_size", "input_size"), [((0, 10), (8, 8)), ((10, 10), (8, 0))])
def test_sizes_must_be_positive(image_size, input_size) -> None:
    with pytest.raises(ValueError, match="at least 1 x 1"):
        Letterbox.fit(image_size, input_size)


def test_apply_refuses_another_size() -> None:
    with pytest.raises(ValueError, match="made for"):
        Letterbox.fit((10, 10), (8, 8)).apply(np.zeros((10, 11, 3), np.uint8))
