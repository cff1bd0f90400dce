"""Crops: geometry in pixels, masks, borders, pack-shots."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mca_perception.identification.crops import BACKGROUND, crop_object, crop_reference, foreground_mask


def striped(height: int = 100, width: int = 200) -> np.ndarray:
    """Red left half, blue right half."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 255
    image[:, width // 2 :, 2] = 255
    return image


def test_box_fills_the_crop_without_margin() -> None:
    crop = crop_object(striped(), np.array([50, 0, 150, 100], np.float32), size=64, margin=0.0)
    assert crop.shape == (64, 64, 3)
    assert (crop[:, :31] == [255, 0, 0]).all()
    assert (crop[:, 33:] == [0, 0, 255]).all()


@pytest.mark.parametrize("size", [24, 64, 300])
def test_aspect_is_kept_and_padding_is_grey(size: int) -> None:
    crop = crop_object(striped(), np.array([0, 0, 200, 100], np.float32), size=size, margin=0.0)
    assert (crop[: size // 4 - 2] == BACKGROUND).all()
    assert (crop[-(size // 4 - 2) :] == BACKGROUND).all()
    assert (crop[size // 2, size // 4] == [255, 0, 0]).all()


def test_mask_hides_the_neighbour() -> None:
    mask = np.zeros((100, 200), bool)
    mask[:, :100] = True
    crop = crop_object(striped(), np.array([50, 0, 150, 100], np.float32), size=64, mask=mask, margin=0.0)
    assert (crop[:, 33:] == BACKGROUND).all()
    assert (crop[:, :31] == [255, 0, 0]).all()


def test_everything_outside_the_mask_is_background() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    mask = rng.random((40, 40)) > 0.5
    crop = crop_object(
        image, np.array([4, 4, 36, 36], np.float32), size=32, mask=mask, margin=0, background=90
    )
    expected = np.where(mask[..., None], image, np.uint8(90))[4:36, 4:36]
    np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize("box", [(-50, -50, 10, 10), (190, 90, 260, 140), (500, 500, 600, 600), (5, 5, 5, 5)])
def test_boxes_over_the_border_are_padded(box: tuple[int, int, int, int]) -> None:
    assert crop_object(striped(), np.array(box, np.float32), size=32).shape == (32, 32, 3)


def test_pack_shot_is_cut_out_and_fills_the_frame() -> None:
    image = np.full((200, 300, 3), 250, np.uint8)
    cv2.rectangle(image, (200, 50), (260, 110), (10, 120, 30), -1)
    mask = foreground_mask(image)
    assert mask is not None
    assert mask[80, 230]
    assert not mask[10, 10]
    crop = crop_reference(image, size=64, margin=0.0)
    assert (crop[4:-4, 4:-4] == [10, 120, 30]).all()


def test_white_product_on_white_keeps_its_inside() -> None:
    """Only its outline can be told from the background: the convex hull is taken."""
    image = np.full((200, 200, 3), 255, np.uint8)
    for start in range(0, 360, 30):
        cv2.ellipse(image, (100, 100), (60, 60), 0, start, start + 20, (60, 60, 60), 3)
    mask = foreground_mask(image)
    assert mask is not None
    assert mask[100, 100]


def test_photo_without_plain_background_is_used_whole() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 80, 3), dtype=np.uint8)
    assert foreground_mask(noise) is None
    crop = crop_reference(noise, size=60)
    assert (crop[30, :8] == BACKGROUND).all()
    assert crop[:, 30].std() > 20
