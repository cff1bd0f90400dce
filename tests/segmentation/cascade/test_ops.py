"""NMS, Soft-NMS and RoIAlign: the plain versions agree with torchvision's, and both are reachable."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mca_perception.segmentation.cascade import ops
from mca_perception.segmentation.cascade.boxes import box_iou
from tests.segmentation.cascade.scenes import random_boxes

SIZE = (200, 260)


@pytest.fixture(params=["plain", "torchvision"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with and without torchvision."""
    if request.param == "plain":
        monkeypatch.setattr(ops, "_torchvision_ops", lambda: None)
    else:
        request.getfixturevalue("torchvision")
        assert ops._torchvision_ops() is not None
    return str(request.param)


def boxes_and_scores(count: int, seed: int) -> tuple[Tensor, Tensor]:
    return random_boxes(count, SIZE, seed), torch.rand(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("count", [0, 1, 400])
def test_nms_equals_torchvision(torchvision: ModuleType, count: int, threshold: float) -> None:
    boxes, scores = boxes_and_scores(count, seed=count)
    expected = torchvision.ops.nms(boxes, scores, threshold)
    assert torch.equal(ops.torch_nms(boxes, scores, threshold), expected)


def test_chain_of_overlaps_is_settled_from_the_best_box() -> None:
    left = torch.arange(9) * 4.0
    boxes = torch.stack([left, torch.zeros(9), left + 10, torch.full((9,), 10.0)], dim=1)
    scores = torch.linspace(0.9, 0.1, 9)
    assert ops.torch_nms(boxes, scores, 0.3).tolist() == [0, 2, 4, 6, 8]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("count", [0, 60, 1500])
def test_groups_do_not_suppress_each_other(torchvision: ModuleType, count: int) -> None:
    boxes, scores = boxes_and_scores(count, seed=1)
    groups = torch.arange(count) % 3
    kept = ops.batched_nms(boxes, scores, groups, 0.5)
    assert torch.equal(kept, torchvision.ops.batched_nms(boxes, scores, groups, 0.5))


def soft_nms_by_hand(
    boxes: Tensor, scores: Tensor, groups: Tensor, sigma: float, floor: float
) -> list[tuple[int, float]]:
    """The paper's loop, box by box."""
    current = scores.tolist()
    overlap = box_iou(boxes, boxes).tolist()
    alive, taken = set(range(len(current))), []
    while alive:
        best = max(alive, key=current.__getitem__)
        if current[best] < floor:
            break
        alive.remove(best)
        taken.append((best, current[best]))
        for other in alive:
            if groups[other] == groups[best]:
                current[other] *= math.exp(-(overlap[best][other] ** 2) / sigma)
    return taken


@pytest.mark.parametrize(("sigma", "floor"), [(0.5, 0.05), (0.1, 0.3)])
def test_soft_nms_is_the_loop_of_the_paper(sigma: float, floor: float) -> None:
    boxes, scores = boxes_and_scores(80, seed=2)
    groups = torch.arange(80) % 2
    expected = soft_nms_by_hand(boxes, scores, groups, sigma, floor)
    kept, lowered = ops.soft_nms(boxes, scores, groups, sigma=sigma, min_score=floor, limit=100)
    assert kept.tolist() == [index for index, _ in expected]
    assert lowered.tolist() == pytest.approx([score for _, score in expected], rel=1e-4)
    first, _ = ops.soft_nms(boxes, scores, groups, sigma=sigma, min_score=floor, limit=5)
    assert first.tolist() == kept[:5].tolist()
    assert (lowered <= scores[kept] + 1e-6).all()
    assert (lowered < scores[kept] - 0.01).any()


def test_soft_nms_of_nothing() -> None:
    empty = torch.zeros(0)
    kept, scores = ops.soft_nms(empty.reshape(0, 4), empty, empty.long(), sigma=0.5, min_score=0.1, limit=9)
    assert kept.shape == scores.shape == (0,)
    assert kept.dtype == torch.long


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize(("output_size", "scale"), [(7, 0.25), (14, 1 / 16), (28, 1.0)])
def test_roi_align_equals_torchvision(
    torchvision: ModuleType, output_size: int, scale: float, sampling_ratio: int, aligned: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(
        3, 5, int(SIZE[0] * scale), int(SIZE[1] * scale), generator=generator, requires_grad=True
    )
    boxes = random_boxes(25, SIZE, 1)
    outside = boxes[:8] + torch.randn(8, 4, generator=generator) * 60
    low, high = (
        torch.minimum(outside[:, :2], outside[:, 2:]),
        torch.maximum(outside[:, :2], outside[:, 2:]),
    )
    boxes = torch.cat([boxes, low.new_tensor([[3.0, 3, 3, 3]]), torch.cat([low, high], dim=1)])
    images = torch.randint(3, (len(boxes), 1), generator=generator).float()
    rois = torch.cat([images, boxes], dim=1)
    arguments = (output_size, scale, sampling_ratio, aligned)
    ours = ops.torch_roi_align(features, rois, *arguments)
    theirs = torchvision.ops.roi_align(
        features, rois, (output_size, output_size), scale, sampling_ratio, aligned
    )
    assert torch.allclose(ours, theirs, atol=1e-5)
    weights = torch.randn(ours.shape, generator=generator)
    (ours_gradient,) = torch.autograd.grad((ours * weights).sum(), features)
    (theirs_gradient,) = torch.autograd.grad((theirs * weights).sum(), features)
    assert torch.allclose(ours_gradient, theirs_gradient, atol=1e-4)


def test_roi_align_in_rounds_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, boxes = torch.randn(2, 4, 20, 26), random_boxes(30, SIZE, 3)
    rois = torch.cat([(torch.arange(30) % 2)[:, None].float(), boxes], dim=1)
    whole = ops.torch_roi_align(features, rois, 7, 0.1, 2, True)
    monkeypatch.setattr(ops, "_MAX_ELEMENTS", 7 * 4 * 26 * 4)
    assert torch.allclose(ops.torch_roi_align(features, rois, 7, 0.1, 2, True), whole, atol=1e-6)


@pytest.mark.usefixtures("backend")
def test_roi_align_computes_in_float32_and_keeps_the_type() -> None:
    features, rois = torch.randn(1, 3, 16, 16), torch.tensor([[0.0, 3, 2, 40, 50]])
    exact = ops.roi_align(features.bfloat16().float(), rois, 7, 0.25, 2, True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ops.roi_align(features.bfloat16(), rois, 7, 0.25, 2, True)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())
    assert ops.roi_align(features, rois[:0], 7, 0.25, 2, True).shape == (0, 3, 7, 7)
