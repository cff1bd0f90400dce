"""Matching and sampling equal torchvision's."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from mca_perception.segmentation.cascade.boxes import box_iou
from mca_perception.segmentation.cascade.matching import BACKGROUND, IGNORED, Matcher, Sampler
from tests.segmentation.cascade.scenes import random_boxes

SIZE = (240, 320)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("foreground", "background", "keep_best"), [(0.5, 0.5, False), (0.6, 0.6, True), (0.7, 0.3, True)]
)
def test_matches_equal_torchvision(
    torchvision: ModuleType, seed: int, foreground: float, background: float, keep_best: bool
) -> None:
    truth = random_boxes(12, SIZE, seed)
    boxes = torch.cat([random_boxes(300, SIZE, seed + 10), truth + 1.0, truth + 9.0])
    boxes = torch.cat([boxes, boxes[-24:]])  # equal overlaps
    reference = torchvision.models.detection._utils.Matcher(foreground, background, keep_best)
    matches = Matcher(foreground, background, keep_best)(truth, boxes)
    assert torch.equal(matches, reference(box_iou(truth, boxes)))
    assert {BACKGROUND, 0} <= set(matches.tolist())
    assert (IGNORED in matches) == (foreground != background)


def test_every_object_keeps_its_best_box() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 90, 90]])
    boxes = torch.tensor([[0.0, 0, 30, 30], [52.0, 50, 90, 90], [200.0, 200, 210, 210]])
    assert Matcher(0.7, 0.3)(truth, boxes).tolist() == [BACKGROUND, 1, BACKGROUND]
    assert Matcher(0.7, 0.3, keep_best=True)(truth, boxes).tolist() == [0, 1, BACKGROUND]


@pytest.mark.parametrize(("objects", "boxes"), [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_match(objects: int, boxes: int) -> None:
    matches = Matcher(0.7, 0.3, keep_best=True)(random_boxes(objects, SIZE, 0), random_boxes(boxes, SIZE, 1))
    assert matches.tolist() == [BACKGROUND] * boxes


@pytest.mark.parametrize(("positives", "negatives"), [(100, 400), (5, 400), (100, 20), (0, 10), (3, 0)])
def test_samples_equal_torchvision(torchvision: ModuleType, positives: int, negatives: int) -> None:
    matches = torch.cat(
        [torch.arange(positives), torch.full((negatives,), BACKGROUND), torch.full((7,), IGNORED)]
    )
    matches = matches[torch.randperm(len(matches), generator=torch.Generator().manual_seed(0))]
    labels = torch.where(matches >= 0, 1, torch.where(matches == IGNORED, -1, 0))
    torch.manual_seed(5)
    drawn = Sampler(64, 0.25)(matches)
    torch.manual_seed(5)
    sampler = torchvision.models.detection._utils.BalancedPositiveNegativeSampler(64, 0.25)
    [[positive], [negative]] = sampler([labels])
    assert torch.equal(drawn, (positive | negative).nonzero()[:, 0])
    assert (matches[drawn] >= 0).sum() == min(positives, 16)
    again = Sampler(64, 0.25, torch.Generator().manual_seed(5))(matches)
    assert torch.equal(again, drawn)
