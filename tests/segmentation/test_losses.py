"""Assignment and losses of the edge head, against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from mca_perception.segmentation.losses import (
    MATCH_IOU,
    MIN_QUALITY,
    NEAR_BEST,
    SegmentationTargets,
    assign_tokens,
    dice_loss,
    mask_iou,
    pairwise_mask_iou,
    quality_focal_loss,
    refinement_loss,
    segmentation_loss,
)
from mca_perception.segmentation.model import POSITION_TERMS, DenseOutput
from mca_perception.segmentation.refinement import Candidates, Refined


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
        ([(1.5, 1.5)], [100.0], {0: 0, 1: 0, 2: 0, 4: 0, 5: 0, 6: 0, 8: 0, 9: 0, 10: 0}),  # nine at most
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
    kernels = torch.zeros(2, 16, 1, 1 + POSITION_TERMS)
    kernels[..., 0] = 1
    scores = torch.full((2, 16, 1), -20.0)
    scores[0, 5] = 20
    hidden = torch.zeros(2, 16, 8)
    good = segmentation_loss(DenseOutput(scores, kernels, basis, hidden), [truth, targets([], [])], (4, 4))
    assert sum(good.values()).item() == pytest.approx(0.0, abs=1e-4)
    bad = segmentation_loss(DenseOutput(-scores, -kernels, basis, hidden), [truth, targets([], [])], (4, 4))
    assert all(bad[name] > good[name] + 0.1 for name in good)


def test_classes_have_their_own_tokens_and_kernels() -> None:
    """An object and a tote with the same centre: the token they share learns a mask for each."""
    truth = targets([(1.5, 1.5), (1.5, 1.5)], [0.5, 100.0])
    truth.labels[1] = 1
    truth.masks[0, 7:9, 7:9] = 1
    truth.masks[1] = 1
    kernels = torch.zeros(1, 16, 2, 1 + POSITION_TERMS, requires_grad=True)
    basis = torch.randn(1, 1 + POSITION_TERMS, 16, 16, generator=torch.Generator().manual_seed(0))
    output = DenseOutput(torch.zeros(1, 16, 2), kernels, basis, torch.zeros(1, 16, 8))
    sum(segmentation_loss(output, [truth], (4, 4)).values()).backward()
    assert kernels.grad is not None
    learning = kernels.grad[0].abs().sum(-1) > 0
    assert learning[:, 0].nonzero()[:, 0].tolist() == [5]
    assert learning[:, 1].nonzero()[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]


def test_pairwise_iou_is_the_iou_of_every_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, truth = torch.randn(3, 6, 5, generator=generator), torch.rand(2, 6, 5, generator=generator)
    expected = torch.stack([mask_iou(logits, mask.expand(3, 6, 5)) for mask in truth], dim=1)
    assert torch.allclose(pairwise_mask_iou(logits, truth), expected)


def refined(masks: torch.Tensor, quality: list[float], labels: list[int]) -> tuple[Candidates, Refined]:
    """One image's candidates whose masks ``[K, 16, 16]`` (0 or 1) the refinement leaves alone."""
    logits = (masks * 40 - 20)[None]
    kinds, count = torch.tensor([labels]), len(labels)
    scores = torch.zeros(1, count)
    candidates = Candidates(scores, kinds, torch.zeros(1, count, 8), torch.zeros(1, count, 7), logits)
    return candidates, Refined(torch.tensor([quality]).logit(eps=1e-6), logits.clone().requires_grad_())


def test_refinement_corrects_the_best_candidates_and_silences_the_others() -> None:
    """The whole, nearly the whole, a half, and the whole under another class; IoU 1, 0.94, 0.5 and none."""
    truth = targets([(2.0, 2.0)], [4.0])
    truth.masks[0, 4:12, 4:12] = 1
    masks = torch.zeros(4, 16, 16)
    masks[0, 4:12, 4:12] = masks[1, 4:12, 4:12] = masks[2, 4:8, 4:12] = masks[3, 4:12, 4:12] = 1
    masks[1, 4, 4:8] = 0
    candidates, out = refined(masks, [1.0, 60 / 64, 0.0, 0.0], [0, 0, 0, 1])
    losses = refinement_loss(candidates, out, [truth])
    assert losses["refined_score"].item() == pytest.approx(0.0, abs=1e-4)
    sum(losses.values()).backward()
    assert out.mask_logits.grad is not None
    corrected = out.mask_logits.grad[0].abs().sum((1, 2)) > 1e-3
    assert corrected.tolist() == [False, True, False, False]  # the whole is right already
    wrong = refinement_loss(*refined(masks, [0.1, 0.1, 0.9, 0.9], [0, 0, 0, 1]), [truth])
    assert wrong["refined_score"] > 0.5


@pytest.mark.parametrize(("rows", "taken"), [(2, False), (3, True)])
def test_refinement_takes_the_best_candidate_from_the_match_iou_on(rows: int, taken: bool) -> None:
    """Two of eight rows are IoU 0.25, three are 0.375."""
    assert 0.25 < MATCH_IOU < 0.375
    assert 0.5 < NEAR_BEST < 60 / 64
    truth = targets([(2.0, 2.0)], [4.0])
    truth.masks[0, 4:12, 4:12] = 1
    masks = torch.zeros(1, 16, 16)
    masks[0, 4 : 4 + rows, 4:12] = 1
    losses = refinement_loss(*refined(masks, [rows / 8 if taken else 0.0], [0]), [truth])
    assert losses["refined_score"].item() == pytest.approx(0.0, abs=1e-4)
    assert (losses["refined_dice"].item() > 0) == taken


def test_refinement_without_objects_learns_that_there_are_none() -> None:
    candidates, out = refined(torch.ones(1, 16, 16), [0.9], [0])
    losses = refinement_loss(candidates, out, [targets([], [])])
    assert losses["refined_score"] > 1
    assert losses["refined_bce"] == losses["refined_dice"] == 0


def test_no_object_at_all_gives_finite_gradients() -> None:
    scores = torch.zeros(1, 16, 1, requires_grad=True)
    basis = torch.zeros(1, 7, 16, 16, requires_grad=True)
    output = DenseOutput(scores, torch.zeros(1, 16, 1, 7), basis, torch.zeros(1, 16, 8))
    sum(segmentation_loss(output, [targets([], [])], (4, 4)).values()).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert 0 < MIN_QUALITY < 1
