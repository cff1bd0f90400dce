"""Small masks become masks of the original image: equal to torchvision's pasting, and then `Objects`."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mca_perception.geometry import Letterbox
from mca_perception.segmentation.cascade.postprocess import BoxCandidates, mask_windows, paste_masks
from mca_perception.segmentation.cascade.targets import Detections
from mca_perception.segmentation.detections import overlapping_detections
from mca_perception.segmentation.postprocess import to_objects
from tests.segmentation.cascade.scenes import random_boxes

SIZE = (120, 170)


def random_masks(count: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, 28, 28), np.float32)


@pytest.mark.parametrize("size", [SIZE, (33, 47)])
def test_pasting_equals_torchvision(torchvision: ModuleType, size: tuple[int, int]) -> None:
    boxes = random_boxes(30, size, 0, smallest=1.0)
    edges = torch.tensor([[0.0, 0, size[1], size[0]], [0.0, 0, 3, 3], [5.5, 7.25, 5.5, 7.25]])
    boxes = torch.cat([boxes, edges])
    masks = random_masks(len(boxes), 1)
    paste = torchvision.models.detection.roi_heads.paste_masks_in_image
    expected = paste(torch.from_numpy(masks)[:, None], boxes, size)[:, 0].numpy()
    windows = mask_windows(masks, boxes.numpy(), size)
    for (rows, columns, values), whole in zip(windows, expected, strict=True):
        canvas = np.zeros(size, np.float32)
        canvas[rows, columns] = values
        np.testing.assert_allclose(canvas, whole, atol=1e-5)
    clear = np.abs(expected - 0.5) > 1e-5
    assert (paste_masks(masks, boxes.numpy(), size) == (expected > 0.5))[clear].all()


def test_nothing_to_paste() -> None:
    assert paste_masks(random_masks(0, 0), np.zeros((0, 4), np.float32), SIZE).shape == (0, *SIZE)


def ellipse_candidates(letterbox: Letterbox) -> tuple[BoxCandidates, list[NDArray[np.bool_]]]:
    """Two ellipses, known in original pixels, as the network would describe them; the second overlaps the first."""
    boxes = np.array([[20, 30, 90, 100], [70, 20, 150, 90]], np.float32)
    y, x = np.mgrid[:28, :28] + 0.5
    mask = np.clip(8 - np.hypot(x - 14, y - 14) + 6.5, 0, 1).astype(np.float32)
    height, width = letterbox.image_size
    rows, columns = np.mgrid[:height, :width] + 0.5
    truth = [
        np.hypot((columns - (a + c) / 2) / (c - a), (rows - (b + d) / 2) / (d - b)) <= 0.5
        for a, b, c, d in boxes
    ]
    detections = Detections(
        torch.from_numpy(letterbox.to_input(boxes)),
        torch.tensor([0.9, 0.8]),
        torch.tensor([0, 1]),
        torch.from_numpy(np.stack([mask, mask])),
    )
    return detections.candidates(letterbox), truth


@pytest.mark.parametrize("image_size", [(120, 170), (240, 170), (120, 400)])
def test_detections_become_objects_of_the_original_image(image_size: tuple[int, int]) -> None:
    candidates, truth = ellipse_candidates(Letterbox.fit(image_size, (128, 160)))
    objects = to_objects(candidates, ("Object", "Parcel"))
    assert objects.image_size == image_size
    assert objects.labels.tolist() == [0, 1]
    assert objects.scores.tolist() == pytest.approx([0.9, 0.8])
    assert objects.instance_mask is not None
    for number, (mine, other) in enumerate(zip(truth, reversed(truth), strict=True), 1):
        found = objects.instance_mask == number
        assert found[mine & ~other].mean() > 0.97
        assert found[~mine].mean() < 0.01
        rows, columns = np.nonzero(found)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert objects.boxes[number - 1].tolist() == pytest.approx(box)


def test_detections_are_written_as_coco_results_with_whole_masks() -> None:
    candidates, truth = ellipse_candidates(Letterbox.fit(SIZE, (128, 160)))
    results = overlapping_detections(candidates, 7, ("Object", "Tote"), {"Object": 3, "Tote": 1})
    assert [entry["category_id"] for entry in results] == [3, 1]
    for entry, mask in zip(results, truth, strict=True):
        found = coco_mask.decode(entry["segmentation"]).astype(bool)
        assert (found & mask).sum() / (found | mask).sum() > 0.93


def test_low_scores_are_left_out() -> None:
    candidates, _ = ellipse_candidates(Letterbox.fit(SIZE, SIZE))
    assert len(candidates.above(0.85)) == 1
    assert len(candidates.above(0.95)) == 0
    assert len(to_objects(candidates.above(0.95), ("Object", "Tote"))) == 0


def test_chosen_candidates_keep_what_belongs_to_them() -> None:
    candidates, _ = ellipse_candidates(Letterbox.fit(SIZE, SIZE))
    (expected,) = list(candidates.windows())[1:]
    (found,) = candidates.where(np.array([False, True])).windows()
    assert found[:2] == expected[:2]
    np.testing.assert_array_equal(found[2], expected[2])
