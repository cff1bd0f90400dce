import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mca_perception.datasets.synth.polygons import trace


def disc(hole: int = 0, cut: bool = False) -> NDArray[np.bool_]:
    mask = np.zeros((60, 80), np.uint8)
    cv2.circle(mask, (40, 30), 24, 1, -1)
    if hole:
        cv2.circle(mask, (44, 28), hole, 0, -1)
    if cut:
        mask[:, 38:43] = 0
    return mask > 0


def two_holes() -> NDArray[np.bool_]:
    mask = disc()
    mask[20:26, 30:36] = False
    mask[36:42, 42:50] = False
    return mask


def rasterise(polygons: list[list[float]], height: int, width: int) -> NDArray[np.bool_]:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))) > 0


@pytest.mark.parametrize(
    ("mask", "parts"),
    [
        (disc(), 1),
        (disc(cut=True), 2),
        (disc(hole=8), 2),
        (two_holes(), 3),
        (np.ones((60, 80), bool), 1),
    ],
)
def test_polygons_rasterise_to_the_mask(mask: NDArray[np.bool_], parts: int) -> None:
    polygons = trace(mask)
    again = rasterise(polygons, *mask.shape)
    assert len(polygons) >= parts
    assert (again & mask).sum() / (again | mask).sum() > 0.98


def test_polygons_are_shifted_by_the_origin() -> None:
    mask = disc()
    moved = rasterise(trace(mask, 5, 7), 80, 100)
    assert (moved[7:67, 5:85] & mask).sum() / (moved[7:67, 5:85] | mask).sum() > 0.98


def test_empty_mask_has_no_polygon() -> None:
    assert trace(np.zeros((10, 12), bool)) == []
