"""Training samples: the random window moves image and truth together; targets are exact."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mca_perception.datasets.coco import Annotation, ImageRecord
from mca_perception.segmentation.data import Augmentation, SegmentationDataset, build_targets, collate

INPUT = (64, 96)
SQUARE = Annotation(1, "Object", [[40.0, 20, 72, 20, 72, 44, 40, 44]], (40, 20, 72, 44), 768.0)


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    """192 x 128 px black image with one white rectangle, annotated as a polygon and once more as a Tote."""
    image = np.zeros((128, 192, 3), np.uint8)
    image[20:44, 40:72] = 255
    cv2.imwrite(str(tmp_path / "scene.png"), image)
    tote = Annotation(2, "Tote", SQUARE.segmentation, SQUARE.box, SQUARE.area)
    crowd = Annotation(3, "Object", SQUARE.segmentation, SQUARE.box, SQUARE.area, is_crowd=True)
    return ImageRecord(1, tmp_path / "scene.png", 128, 192, (SQUARE, tote, crowd))


def test_letterboxed_sample_is_exact(record: ImageRecord) -> None:
    sample = SegmentationDataset([record], ("Object",), INPUT, None)[0]
    assert sample.image.shape == (3, *INPUT)
    assert sample.image.dtype == torch.uint8
    assert sample.targets.labels.tolist() == [0]
    mask = sample.targets.masks[0]
    assert mask[3:5, 5:9].min() == 1
    # 4 x 3 cells; OpenCV also fills what the outline touches, a quarter of an input pixel all around.
    assert 12.0 <= mask.sum().item() <= 13.0
    # Rectangle centre (56, 32) px of the image = (28, 16) px of the input = (1.75, 1.0) tokens.
    assert sample.targets.centres[0].tolist() == pytest.approx([1.75, 1.0], abs=0.1)


def test_augmented_masks_stay_on_the_object(record: ImageRecord) -> None:
    dataset = SegmentationDataset(
        [record] * 20, ("Object",), INPUT, Augmentation(scale=(0.9, 1.2), brightness=0.1)
    )
    seen = 0
    for index in range(20):
        sample = dataset[index]
        for mask in sample.targets.masks:
            seen += 1
            bright = sample.image.float().mean(0)
            covered = torch.nn.functional.interpolate(mask[None, None], scale_factor=4)[0, 0] > 0.99
            outside = torch.nn.functional.max_pool2d(mask[None, None], 3, 1, 1)[0, 0] == 0
            outside = torch.nn.functional.interpolate(outside[None, None].float(), scale_factor=4)[0, 0] > 0
            assert bright[covered].mean() > bright[outside].mean() + 60
    assert seen >= 18


def test_rle_and_polygon_agree(record: ImageRecord) -> None:
    from pycocotools import mask as coco_mask

    drawn = np.zeros((128, 192), np.uint8)
    drawn[20:44, 40:72] = 1
    encoded = coco_mask.encode(np.asfortranarray(drawn))
    as_rle = Annotation(
        1, "Object", {"size": [128, 192], "counts": encoded["counts"]}, SQUARE.box, SQUARE.area
    )
    other = ImageRecord(1, record.path, 128, 192, (as_rle,))
    first, second = (
        SegmentationDataset([r], ("Object",), INPUT, None)[0].targets.masks for r in (record, other)
    )
    assert (first - second).abs().max() <= 0.3


def test_targets_of_an_object_with_a_hole_have_a_centre_on_it() -> None:
    ring = np.zeros((128, 128), np.uint16)
    ring[16:112, 16:112] = 1
    ring[40:88, 40:88] = 0
    targets = build_targets(ring, np.array([0], np.int64))
    x, y = (targets.centres[0] * 4).long().tolist()
    assert targets.masks[0, y, x] > 0.5


def test_collate_keeps_a_list_of_targets(record: ImageRecord) -> None:
    dataset = SegmentationDataset([record, record], ("Nothing",), INPUT, None)
    images, targets = collate([dataset[0], dataset[1]])
    assert images.shape == (2, 3, *INPUT)
    assert [len(truth.labels) for truth in targets] == [0, 0]
