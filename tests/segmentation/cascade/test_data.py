"""Training samples of the detector: tight boxes, whole masks, classes by name."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mca_perception.datasets.coco import Annotation, ImageRecord
from mca_perception.segmentation.cascade.data import DetectionDataset, build_targets, collate
from mca_perception.segmentation.data import SegmentationDataset
from mca_perception.segmentation.recipe import Augmentation

INPUT = (64, 96)
SQUARE = Annotation(1, "Object", [[40.0, 20, 72, 20, 72, 44, 40, 44]], (40, 20, 72, 44), 768.0)
TOTE = Annotation(2, "Tote", [[0.0, 0, 192, 0, 192, 128, 0, 128]], (0, 0, 192, 128), 192.0 * 128)


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    """192 x 128 px black image with one white rectangle, in a tote that is annotated after it."""
    image = np.zeros((128, 192, 3), np.uint8)
    image[20:44, 40:72] = 255
    cv2.imwrite(str(tmp_path / "scene.png"), image)
    crowd = Annotation(3, "Object", SQUARE.segmentation, SQUARE.box, SQUARE.area, is_crowd=True)
    return ImageRecord(1, tmp_path / "scene.png", 128, 192, (SQUARE, TOTE, crowd))


def dataset(record: ImageRecord, *labels: str, augmentation: Augmentation | None = None) -> DetectionDataset:
    return DetectionDataset(SegmentationDataset([record] * 10, labels, INPUT, augmentation))


def test_object_in_a_tote_keeps_its_mask(record: ImageRecord) -> None:
    image, targets = dataset(record, "Object", "Tote")[0]
    assert image.shape == (3, *INPUT)
    assert targets.labels.tolist() == [0, 1]
    assert targets.masks.shape == (2, *INPUT)
    assert targets.masks.dtype == torch.bool
    # Half the size of the original: the rectangle covers 16 x 12 pixels, and OpenCV's outline a quarter of one more.
    assert targets.boxes[0].tolist() == pytest.approx([20, 10, 36, 22], abs=1)
    assert targets.masks[0, 10:22, 20:36].all()
    assert targets.boxes[1].tolist() == [0, 0, 96, 64]
    assert targets.masks[1].all()


@pytest.mark.parametrize(
    ("labels", "expected"), [(("Tote", "Object"), [1, 0]), (("Object",), [0]), (("Box",), [])]
)
def test_classes_are_taken_by_name(record: ImageRecord, labels: tuple[str, ...], expected: list[int]) -> None:
    targets = dataset(record, *labels)[0].targets
    assert targets.labels.tolist() == expected
    assert targets.boxes.shape == (len(expected), 4)
    assert targets.masks.shape == (len(expected), *INPUT)


def test_augmented_boxes_are_tight_and_on_the_object(record: ImageRecord) -> None:
    scenes = dataset(record, "Object", augmentation=Augmentation(scale=(0.9, 1.2), brightness=0.1))
    seen = 0
    for index in range(len(scenes)):
        image, targets = scenes[index]
        for (left, top, right, bottom), mask in zip(
            targets.boxes.long().tolist(), targets.masks, strict=True
        ):
            seen += 1
            assert mask.sum() == mask[top:bottom, left:right].sum()
            inside = mask[top:bottom, left:right]
            assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            assert image.float().mean(0)[mask].mean() > 150
    assert seen >= 8


def test_object_thinner_than_half_a_pixel_is_left_out() -> None:
    drawn = np.zeros((128, 192), np.uint8)
    drawn[20, 10:100:4] = 1
    assert len(build_targets([(drawn, 0)], INPUT).labels) == 0


def test_collate_stacks_images_only(record: ImageRecord) -> None:
    scenes = dataset(record, "Object", "Tote")
    images, targets = collate([scenes[0], scenes[1]])
    assert images.shape == (2, 3, *INPUT)
    assert [len(truth.labels) for truth in targets] == [2, 2]
