"""Box arithmetic equals torchvision's."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from mca_perception.segmentation.cascade.boxes import (
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    has_size,
)
from tests.segmentation.cascade.scenes import random_boxes

SIZE = (240, 320)
WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (30.0, 30.0, 15.0, 15.0)]


@pytest.mark.parametrize("seed", range(3))
def test_overlap_clipping_and_size_equal_torchvision(torchvision: ModuleType, seed: int) -> None:
    first, second = random_boxes(40, SIZE, seed), random_boxes(30, SIZE, seed + 100)
    ops = torchvision.ops
    assert torch.allclose(box_iou(first, second), ops.box_iou(first, second), atol=1e-6)
    shifted = first + torch.randn(40, 4, generator=torch.Generator().manual_seed(seed)) * 200
    assert torch.equal(clip_boxes(shifted, SIZE), ops.clip_boxes_to_image(shifted, SIZE))
    clipped = clip_boxes(shifted, SIZE)
    assert has_size(clipped, 1.0).nonzero()[:, 0].tolist() == ops.remove_small_boxes(clipped, 1.0).tolist()
    assert 0 < has_size(clipped, 1.0).sum() < 40


@pytest.mark.parametrize("weights", WEIGHTS)
def test_code_equals_torchvision(torchvision: ModuleType, weights: tuple[float, float, float, float]) -> None:
    coder = torchvision.models.detection._utils.BoxCoder(weights)
    truth, boxes = random_boxes(50, SIZE, 0), random_boxes(50, SIZE, 1)
    expected = coder.encode_single(truth, boxes)
    assert torch.allclose(encode_boxes(truth, boxes, weights), expected, rtol=1e-5, atol=1e-5)
    # Codes far beyond sense are clamped, the same way.
    codes = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)) * torch.tensor(weights) * 4
    expected = coder.decode_single(codes, boxes)
    assert torch.allclose(decode_boxes(codes, boxes, weights), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decoding_undoes_encoding(weights: tuple[float, float, float, float]) -> None:
    truth, boxes = random_boxes(50, SIZE, 3), random_boxes(50, SIZE, 4)
    assert torch.allclose(decode_boxes(encode_boxes(truth, boxes, weights), boxes, weights), truth, atol=1e-3)


def test_several_codes_per_box_broadcast() -> None:
    boxes, codes = random_boxes(5, SIZE, 0), torch.randn(5, 3, 4)
    decoded = decode_boxes(codes, boxes[:, None], WEIGHTS[1])
    assert torch.allclose(decoded[:, 2], decode_boxes(codes[:, 2], boxes, WEIGHTS[1]))
