"""Training samples: the random window moves image and truth together; targets are exact."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mca_perception.datasets.coco import Annotation, ImageRecord
from mca_perception.segmentation.data import SegmentationDataset, blend, build_targets, collate
from mca_perception.segmentation.recipe import Augmentation

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
    ring = np.zeros((128, 128), np.uint8)
    ring[16:112, 16:112] = 1
    ring[40:88, 40:88] = 0
    targets = build_targets([(ring, 0)], (64, 64))
    x, y = (targets.centres[0] * 4).long().tolist()
    assert targets.masks[0, y, x] > 0.5


def test_tote_keeps_what_its_objects_hide() -> None:
    tote, item = np.ones((128, 128), np.uint8), np.zeros((128, 128), np.uint8)
    item[40:80, 40:80] = 1
    targets = build_targets([(tote, 1), (item, 0)], (64, 64))
    assert targets.masks[0].min() == 1
    assert targets.areas.tolist() == [16.0, pytest.approx(40 * 40 / 32**2)]


def test_collate_keeps_a_list_of_targets(record: ImageRecord) -> None:
    dataset = SegmentationDataset([record, record], ("Nothing",), INPUT, None)
    images, targets = collate([dataset[0], dataset[1]])
    assert images.shape == (2, 3, *INPUT)
    assert [len(truth.labels) for truth in targets] == [0, 0]


def colour_scene(folder: Path, name: str, colour: int, *corners: tuple[int, int]) -> ImageRecord:
    """192 x 128 px black image with squares of one grey, 48 px wide, whose upper left corners are given."""
    image = np.zeros((128, 192, 3), np.uint8)
    annotations = []
    for number, (x, y) in enumerate(corners, 1):
        image[y : y + 48, x : x + 48] = colour
        outline = [float(v) for v in (x, y, x + 48, y, x + 48, y + 48, x, y + 48)]
        annotations.append(Annotation(number, "Object", [outline], (x, y, x + 48, y + 48), 2304.0))
    cv2.imwrite(str(folder / name), image)
    return ImageRecord(1, folder / name, 128, 192, tuple(annotations))


def test_large_scale_jitter_shrinks_and_enlarges(tmp_path: Path) -> None:
    record = colour_scene(tmp_path, "one.png", 255, (72, 40))
    bright = []
    for zoom in (0.1, 0.6, 2.0):
        fixed = Augmentation(scale=(zoom, zoom), rotation=0, brightness=0)
        dataset = SegmentationDataset([record], ("Object",), (128, 192), fixed)
        sample = dataset[0]
        bright.append(int((sample.image.float().mean(0) > 200).sum()))
        assert len(sample.targets.labels) == (zoom > 0.5)  # the smallest is 4.8 px wide: clutter
    assert bright[0] == pytest.approx(4.8**2, abs=12)
    assert bright[1] == pytest.approx((0.6 * 48) ** 2, rel=0.1)
    assert bright[2] > 1.2 * 48**2  # it may reach over the edge


def test_extreme_shapes_survive_large_scale_jitter(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "thin.png"), np.full((3, 1500, 3), 255, np.uint8))
    record = ImageRecord(1, tmp_path / "thin.png", 3, 1500, ())
    dataset = SegmentationDataset([record], ("Object",), INPUT, Augmentation(scale=(0.1, 0.1)))
    assert dataset[0].image.shape == (3, *INPUT)


def test_pasted_objects_hide_what_is_below(tmp_path: Path) -> None:
    """Bright squares on a grid that covers the scene are pasted over dark ones: every pixel has the owner it shows."""
    below = colour_scene(tmp_path, "below.png", 90, (0, 0), (72, 0), (144, 0), (0, 70), (72, 70), (144, 70))
    above = colour_scene(tmp_path, "above.png", 250, (20, 10), (100, 10), (60, 75))
    settings = Augmentation(scale=(1, 1), rotation=0, brightness=0, copy_paste=1)
    dataset = SegmentationDataset([below, above, above, above], ("Object",), (128, 192), settings)
    plain = SegmentationDataset(
        [below], ("Object",), (128, 192), settings.model_copy(update={"copy_paste": 0})
    )
    pasted = hidden = 0
    for seed in range(12):
        dataset.seed = plain.seed = seed
        scene = dataset.scene(0)
        image, masks = scene.image.float().mean(0).numpy(), [mask for mask, _ in scene.instances]
        inside = [cv2.erode(mask, np.ones((9, 9)))[::2, ::2] > 0 for mask in masks]
        inside = [
            part if part.any() else mask[::2, ::2] > 0 for part, mask in zip(inside, masks, strict=True)
        ]
        bright = [float(np.median(image[part])) > 160 for part in inside]
        assert all(np.ptp(image[part]) < 8 for part in inside if part.sum() > 100)  # one object, never two
        pasted += sum(bright)
        before = sum(int(mask.sum()) for mask, _ in plain.scene(0).instances)
        hidden += before - sum(
            int(mask.sum()) for mask, light in zip(masks, bright, strict=True) if not light
        )
        covered = np.sum([mask.astype(int) for mask in masks], axis=0)
        assert covered.max() <= 2  # outlines of neighbours in one scene may share a row
        assert np.mean(covered > 1) < 0.01
    assert pasted > 6
    assert hidden > 0


def test_wholly_hidden_object_is_no_target(tmp_path: Path) -> None:
    records = [colour_scene(tmp_path, f"{grey}.png", grey, (72, 40)) for grey in (90, 250)]
    settings = Augmentation(scale=(1, 1), rotation=0, brightness=0, copy_paste=1)
    dataset = SegmentationDataset(records, ("Object",), (128, 192), settings)
    for seed in range(6):
        dataset.seed = seed
        sample = dataset[0]
        assert len(sample.targets.labels) == 1
        assert sample.targets.masks[0].sum() == pytest.approx(
            12.1 * 12.1, abs=3
        )  # and what the outline touches


@pytest.mark.parametrize(("changes", "most"), [({"pasted_labels": ["Tote"]}, 0), ({"most_pasted": 1}, 1)])
def test_pasting_keeps_to_classes_and_number(tmp_path: Path, changes: dict[str, object], most: int) -> None:
    empty = colour_scene(tmp_path, "empty.png", 0)
    donor = colour_scene(tmp_path, "donor.png", 250, (20, 10), (100, 10), (60, 75))
    settings = Augmentation.model_validate({"scale": (1, 1), "copy_paste": 1, **changes})
    counts = []
    for seed in range(8):
        dataset = SegmentationDataset([empty, donor], ("Object",), (128, 192), settings, seed)
        counts.append(len(dataset[0].targets.labels))
    assert max(counts) == most


def test_same_seed_pastes_the_same(tmp_path: Path) -> None:
    records = [colour_scene(tmp_path, f"{n}.png", 50 * n, (30 * n, 20)) for n in range(1, 5)]
    settings = Augmentation(scale=(0.5, 2), copy_paste=0.5)
    first, second, other = (
        SegmentationDataset(records, ("Object",), INPUT, settings, seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first[0].image, second[0].image)
    assert torch.equal(first[0].targets.masks, second[0].targets.masks)
    assert not torch.equal(first[0].image, other[0].image)


def test_blend_mixes_at_the_outline() -> None:
    below, above = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 200, np.uint8)
    cover = np.zeros((4, 4), np.uint8)
    cover[:2, :2] = 1
    cover[2:, 0] = 1
    assert blend(below, above, cover)[..., 0].tolist() == [[200, 0], [100, 0]]


def test_augmentation_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller zoom comes first"):
        Augmentation(scale=(2, 0.1))
