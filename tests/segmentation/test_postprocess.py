from __future__ import annotations

import numpy as np
import pytest

from mca_perception.geometry import Letterbox
from mca_perception.segmentation.postprocess import (
    Candidates,
    compose_instance_mask,
    select_instances,
    to_objects,
)

SETTINGS = {"score_threshold": 0.3, "nms_iou": 0.5, "max_objects": 100}


def random_candidates(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:24, :32]
    centres = rng.uniform([0, 0], [24, 32], (count // 3, 2))
    chosen = centres[rng.integers(0, len(centres), count)] + rng.normal(0, 1, (count, 2))
    radii = rng.uniform(1, 6, count)
    logits = radii[:, None, None] - np.hypot(rows - chosen[:, :1, None], columns - chosen[:, 1:, None])
    return rng.random(count).astype(np.float32), rng.integers(0, 2, count), logits.astype(np.float32)


def greedy_nms(scores, labels, logits, score_threshold, nms_iou, max_objects) -> list[int]:
    """The definition, one pair at a time."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        mask = logits[i] > 0
        if scores[i] < score_threshold or not mask.any():
            continue
        overlaps = (
            (mask & (logits[j] > 0)).sum() / (mask | (logits[j] > 0)).sum()
            for j in kept
            if labels[j] == labels[i]
        )
        if all(iou <= nms_iou for iou in overlaps):
            kept.append(i)
    return kept[:max_objects]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("changes", [{}, {"nms_iou": 0.1}, {"max_objects": 3}, {"score_threshold": 0.0}])
def test_selection_equals_pairwise_greedy_nms(seed, changes) -> None:
    candidates, settings = random_candidates(seed), SETTINGS | changes
    assert select_instances(*candidates, **settings).tolist() == greedy_nms(*candidates, **settings)


@pytest.mark.parametrize("count", [0, 5])
def test_nothing_confident_selects_nothing(count) -> None:
    scores = np.full(count, 0.1, np.float32)
    kept = select_instances(scores, np.zeros(count, int), np.ones((count, 4, 4), np.float32), **SETTINGS)
    assert kept.tolist() == []


def bilinear(logits: np.ndarray, letterbox: Letterbox) -> np.ndarray:
    """Sample a mask at every pixel centre of the original image, one pixel at a time."""
    height, width = letterbox.image_size
    cells_y, cells_x = logits.shape
    stride_y, stride_x = letterbox.input_size[0] / cells_y, letterbox.input_size[1] / cells_x
    output = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y = ((row + 0.5) * letterbox.scale_y + letterbox.pad_top) / stride_y - 0.5
            x = ((column + 0.5) * letterbox.scale_x + letterbox.pad_left) / stride_x - 0.5
            y, x = min(max(y, 0), cells_y - 1), min(max(x, 0), cells_x - 1)
            y0, x0 = min(int(y), cells_y - 2), min(int(x), cells_x - 2)
            fy, fx = y - y0, x - x0
            top = logits[y0, x0] * (1 - fx) + logits[y0, x0 + 1] * fx
            bottom = logits[y0 + 1, x0] * (1 - fx) + logits[y0 + 1, x0 + 1] * fx
            output[row, column] = top * (1 - fy) + bottom * fy
    return output


@pytest.mark.parametrize("image_size", [(37, 61), (96, 128), (61, 37)])
def test_composition_equals_pixel_by_pixel_interpolation(image_size) -> None:
    _, _, logits = random_candidates(1, count=9)
    letterbox = Letterbox.fit(image_size, (96, 128))

    instance_mask, areas, boxes = compose_instance_mask(logits, letterbox, image_size, min_area=1)

    full = np.stack([bilinear(mask, letterbox) for mask in logits])
    expected = np.where(full.max(axis=0) > 0, full.argmax(axis=0) + 1, 0)
    clear = np.abs(np.sort(full, axis=0)[-1] - np.sort(full, axis=0)[-2]) > 1e-4
    clear &= np.abs(full.max(axis=0)) > 1e-4
    np.testing.assert_array_equal(instance_mask[clear], expected[clear])
    for m in range(len(logits)):
        rows, columns = np.nonzero(instance_mask == m + 1)
        assert areas[m] == len(rows)
        if len(rows):
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert boxes[m].tolist() == tight
        else:
            assert boxes[m].tolist() == [0, 0, 0, 0]


def test_small_leftovers_are_dropped_and_cleared() -> None:
    logits = np.full((2, 8, 8), -1, np.float32)
    logits[0, 1:5, 1:5] = 3
    logits[1, 1:5, 1:5] = 2  # hidden behind the first but for its soft edge
    letterbox = Letterbox.fit((32, 32), (32, 32))
    kept, areas, boxes = compose_instance_mask(logits, letterbox, (32, 32), min_area=40)
    assert areas[0] > 200
    assert areas[1] == 0
    assert not boxes[1].any()
    assert set(np.unique(kept)) == {0, 1}


def test_no_instances() -> None:
    letterbox = Letterbox.fit((20, 30), (32, 32))
    instance_mask, areas, boxes = compose_instance_mask(np.zeros((0, 8, 8), np.float32), letterbox, (20, 30))
    assert instance_mask.shape == (20, 30)
    assert not instance_mask.any()
    assert (areas.shape, boxes.shape) == ((0,), (0, 4))


def test_composition_refuses_a_foreign_letterbox() -> None:
    letterbox = Letterbox.fit((20, 30), (32, 32))
    with pytest.raises(ValueError, match="letterbox was made for"):
        compose_instance_mask(np.zeros((1, 8, 8), np.float32), letterbox, (30, 20))


def test_tote_takes_no_pixel_from_its_objects() -> None:
    """Published objects are the same with and without the tote around them, however sure of itself it is."""
    letterbox = Letterbox.fit((64, 64), (64, 64))
    logits = np.full((3, 16, 16), -5, np.float32)
    logits[0] = 9
    logits[1, 2:6, 2:6] = 1
    logits[2, 8:14, 8:14] = 1
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    labels = np.array([1, 0, 0], np.int64)
    together = to_objects(Candidates(scores, labels, logits, letterbox), ("Object", "Tote"))
    alone = to_objects(Candidates(scores[1:], labels[1:], logits[1:], letterbox), ("Object", "Tote"))
    assert together.scores.tolist() == alone.scores.tolist() == pytest.approx([0.8, 0.7])
    assert np.array_equal(together.instance_mask, alone.instance_mask)
    assert np.array_equal(together.boxes, alone.boxes)


@pytest.mark.parametrize(
    ("classes", "scores"),
    [((), [0.8]), (("Bag",), [0.7]), (("Box", "Bag"), [0.8]), (("Tote",), []), (("Jar",), [])],
)
def test_only_wanted_classes_compete(classes, scores) -> None:
    """The bag lies wholly under the box, and is seen when boxes are not wanted."""
    letterbox = Letterbox.fit((64, 64), (64, 64))
    logits = np.full((3, 16, 16), -5, np.float32)
    logits[:, 2:6, 2:6] = np.array([9, 8, 1])[:, None, None]
    logits[1, 8:14, 8:14] = 1
    labels = np.array([2, 0, 1], np.int64)
    candidates = Candidates(np.array([0.9, 0.8, 0.7], np.float32), labels, logits, letterbox)
    objects = to_objects(candidates, ("Box", "Bag", "Tote"), min_area=1, classes=classes)
    assert objects.scores.tolist() == pytest.approx(scores)


@pytest.mark.parametrize("chosen", [[], [1], [0, 2]])
def test_chosen_candidates_keep_what_belongs_to_them(chosen) -> None:
    scores, labels, logits = random_candidates(2, count=3)
    letterbox = Letterbox.fit((96, 128), (96, 128))
    some = Candidates(scores, labels, logits, letterbox).where(np.isin(np.arange(3), chosen))
    assert some.scores.tolist() == scores[chosen].tolist()
    assert some.labels.tolist() == labels[chosen].tolist()
    np.testing.assert_array_equal(some.mask_logits, logits[chosen])
    assert some.letterbox == letterbox
