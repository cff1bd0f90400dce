"""Assignment and losses of the edge head, against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from mca_perception.segmentation.losses import (
    MIN_QUALITY,
    SegmentationTargets,
    assign_tokens,
    dice_loss,
    mask_iou,
    quality_focal_loss,
    segmentation_loss,
)
from mca_perception.segmentation.model import POSITION_TERMS, DenseOutput


def targets(centres: list[tuple[float, float]], areas: list[float]) -> SegmentationTargets:
    count = len(centres)
    return SegmentationTargets(
        masks=torch.zeros(count, 16, 16),
        labels=torch.zeros(count, dtype=torch.int64),
        centres=torch.tensor(centres).reshape(count, 2),
        areas=torch.tensor(areas),
    )


@pytest.mark.parametrize(
    ("centres", "areas", "expected"),
    [
        ([(1.5, 2.5)], [0.01], {9: 0}),  # a tiny object still gets the token it lies in: row 2, column 1
        ([(2.0, 2.0)], [8.1], {5: 0, 6: 0, 9: 0, 10: 0}),  # radius 0.711 just reaches the four tokens around
        ([(1.5, 1.5), (1.6, 1.5)], [4.0, 0.5], {5: 1}),  # the smaller object wins a shared token
        ([], [], {}),
    ],
)
def test_assignment(centres: list[tuple[float, float]], areas: list[float], expected: dict[int, int]) -> None:
    tokens, objects = assign_tokens(targets(centres, areas), 4, 4) if centres else ([], [])
    assert {int(token): int(owner) for token, owner in zip(tokens, objects, strict=True)} == expected


def test_dice_and_iou_of_known_masks() -> None:
    truth = torch.zeros(2, 4, 4)
    truth[:, :2] = 1
    logits = torch.full((2, 4, 4), -20.0)
    logits[0, :2] = 20
    logits[1, 1:3] = 20
    assert mask_iou(logits, truth).tolist() == pytest.approx([1.0, 4 / 12])
    assert dice_loss(logits, truth).tolist() == pytest.approx([0.0, 1 - (2 * 4 + 1) / (8 + 8 + 1)], abs=1e-5)


def test_quality_focal_loss_is_zero_at_its_target() -> None:
    quality = torch.tensor([0.3, 0.9])
    assert quality_focal_loss(quality.logit(), quality).item() == pytest.approx(0.0, abs=1e-9)
    expected = (0.8 - 0.5) ** 2 * 0.6931472
    assert quality_focal_loss(torch.zeros(1), torch.tensor([0.8])).item() == pytest.approx(expected, rel=1e-5)


def test_perfect_prediction_scores_best_and_empty_images_are_fine() -> None:
    truth = targets([(1.5, 1.5)], [1.0])
    truth.masks[0, 4:8, 4:8] = 1
    basis = torch.zeros(2, 1 + POSITION_TERMS, 16, 16)
    basis[:, 0] = -20
    basis[:, 0, 4:8, 4:8] = 20
    kernels = torch.zeros(2, 16, 1 + POSITION_TERMS)
    kernels[..., 0] = 1
    scores = torch.full((2, 16, 1), -20.0)
    scores[0, 5] = 20
    good = segmentation_loss(DenseOutput(scores, kernels, basis), [truth, targets([], [])], (4, 4))
    assert sum(good.values()).item() == pytest.approx(0.0, abs=1e-4)
    bad = segmentation_loss(DenseOutput(-scores, -kernels, basis), [truth, targets([], [])], (4, 4))
    assert all(bad[name] > good[name] + 0.1 for name in good)


def test_no_object_at_all_gives_finite_gradients() -> None:
    scores = torch.zeros(1, 16, 1, requires_grad=True)
    output = DenseOutput(scores, torch.zeros(1, 16, 7), torch.zeros(1, 7, 16, 16, requires_grad=True))
    sum(segmentation_loss(output, [targets([], [])], (4, 4)).values()).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert 0 < MIN_QUALITY < 1
