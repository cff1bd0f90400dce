"""Anchors, proposals and losses of the region proposal network equal torchvision's."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mca_perception.segmentation.cascade.anchors import base_anchors, grid_anchors
from mca_perception.segmentation.cascade.config import MASK_RCNN, ProposalConfig
from mca_perception.segmentation.cascade.pyramid import PYRAMID_STRIDES
from mca_perception.segmentation.cascade.rpn import ProposalNetwork
from mca_perception.segmentation.cascade.targets import DetectionTargets
from tests.segmentation.cascade.scenes import random_boxes, random_targets

SIZE, CHANNELS = (128, 192), 16
SETTINGS = ProposalConfig(convs=1, candidates=(150, 90), proposals=(120, 70))


def maps(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, CHANNELS, SIZE[0] // stride, SIZE[1] // stride, generator=generator)
        for stride in PYRAMID_STRIDES
    ]


def images(torchvision: ModuleType) -> Any:
    return torchvision.models.detection.image_list.ImageList(torch.zeros(2, 3, *SIZE), [SIZE, SIZE])


def networks(torchvision: ModuleType) -> tuple[ProposalNetwork, Any]:
    """Ours and torchvision's, with the same weights."""
    torch.manual_seed(0)
    config = replace(MASK_RCNN, proposals=SETTINGS)
    ours = ProposalNetwork(config, CHANNELS, PYRAMID_STRIDES)
    for module in ours.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.05)
    detection = torchvision.models.detection
    head = detection.rpn.RPNHead(CHANNELS, 3)
    head.load_state_dict(
        {
            "conv.0.0.weight": ours.head.convs[0].weight,
            "conv.0.0.bias": ours.head.convs[0].bias,
            "cls_logits.weight": ours.head.objectness.weight,
            "cls_logits.bias": ours.head.objectness.bias,
            "bbox_pred.weight": ours.head.codes.weight,
            "bbox_pred.bias": ours.head.codes.bias,
        }
    )
    anchors = detection.anchor_utils.AnchorGenerator(
        tuple((int(size),) for size in SETTINGS.anchor_sizes), (SETTINGS.anchor_ratios,) * 5
    )
    counts = (SETTINGS.candidates, SETTINGS.proposals)
    limits = [{"training": training, "testing": testing} for training, testing in counts]
    return ours, detection.rpn.RegionProposalNetwork(anchors, head, 0.7, 0.3, 256, 0.5, *limits, 0.7)


@pytest.mark.parametrize("ratios", [(0.5, 1.0, 2.0), (1.0,)])
def test_anchors_equal_torchvision(torchvision: ModuleType, ratios: tuple[float, ...]) -> None:
    sizes = SETTINGS.anchor_sizes
    generator = torchvision.models.detection.anchor_utils.AnchorGenerator(
        tuple((int(size),) for size in sizes), (ratios,) * 5
    )
    expected = generator(images(torchvision), maps())[0]
    ours = [
        grid_anchors(base_anchors(size, ratios), SIZE[0] // stride, SIZE[1] // stride, stride)
        for size, stride in zip(sizes, PYRAMID_STRIDES, strict=True)
    ]
    assert torch.equal(torch.cat(ours), expected)


@pytest.mark.parametrize("training", [True, False])
def test_proposals_equal_torchvision(torchvision: ModuleType, training: bool) -> None:
    ours, theirs = networks(torchvision)
    ours.train(training)
    theirs.train(training)
    targets = [random_targets(5, SIZE, 1, seed) for seed in (0, 1)]
    features = {str(level): part for level, part in enumerate(maps())}
    expected, _ = theirs(images(torchvision), features, [{"boxes": truth.boxes} for truth in targets])
    output = ours.head(maps())
    found = ours.propose(output, ours.anchors(maps()), SIZE)
    assert [len(boxes) for boxes in found] == [SETTINGS.proposals[0 if training else 1]] * 2
    for mine, other in zip(found, expected, strict=True):
        assert torch.allclose(mine, other, atol=1e-4)


@pytest.mark.parametrize("objects", [(6, 3), (4, 0), (0, 0)])
def test_losses_equal_torchvision(torchvision: ModuleType, objects: tuple[int, int]) -> None:
    ours, theirs = networks(torchvision)
    boxes = [random_boxes(count, SIZE, seed, smallest=20.0) for seed, count in enumerate(objects)]
    targets = [
        DetectionTargets(part, torch.zeros(len(part), dtype=torch.long), torch.zeros(len(part), *SIZE) > 0)
        for part in boxes
    ]
    features = {str(level): part for level, part in enumerate(maps())}
    torch.manual_seed(3)
    _, expected = theirs(images(torchvision), features, [{"boxes": part} for part in boxes])
    torch.manual_seed(3)
    losses = ours.losses(ours.head(maps()), ours.anchors(maps()), targets)
    assert losses["objectness"].item() == pytest.approx(expected["loss_objectness"].item(), rel=1e-5)
    assert losses["proposal_box"].item() == pytest.approx(
        expected["loss_rpn_box_reg"].item(), rel=1e-5, abs=1e-7
    )
    assert (losses["proposal_box"] > 0) == (sum(objects) > 0)


def test_levels_need_an_anchor_size_each() -> None:
    with pytest.raises(ValueError, match="anchor_sizes"):
        ProposalNetwork(replace(MASK_RCNN, proposals=SETTINGS), CHANNELS, (8, 16))
