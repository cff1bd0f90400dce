"""The whole detector: equal to torchvision's Mask R-CNN with the cascade off, and what the cascade adds."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mca_perception.backbone import create_backbone
from mca_perception.segmentation.cascade import ops
from mca_perception.segmentation.cascade.boxes import box_iou
from mca_perception.segmentation.cascade.config import (
    BASE,
    NANO,
    BoxConfig,
    CascadeConfig,
    PoolingConfig,
    SelectionConfig,
)
from mca_perception.segmentation.cascade.detector import CascadeDetector, CascadeHead, DetectionHeads
from mca_perception.segmentation.cascade.pyramid import PYRAMID_STRIDES
from mca_perception.segmentation.cascade.targets import DetectionTargets
from tests.segmentation.cascade.oracle import detector_like, mask_rcnn
from tests.segmentation.cascade.scenes import random_boxes, random_targets

SIZE = (128, 192)
LABELS = ("Object", "Tote")
THEIR_NAMES = {
    "objectness": "loss_objectness",
    "proposal_box": "loss_rpn_box_reg",
    "class_1": "loss_classifier",
    "box_1": "loss_box_reg",
    "mask": "loss_mask",
}


@pytest.fixture(scope="module")
def model(torchvision: ModuleType) -> Any:
    """torchvision's Mask R-CNN with random weights, its running statistics settled whatever test comes first."""
    model = mask_rcnn(torchvision, len(LABELS)).train()
    with torch.no_grad():
        images = model.transform(pictures())[0].tensors
        for _ in range(20):
            model.backbone(images)
    return model


def pictures(count: int = 2) -> list[Tensor]:
    return list(torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(1)))


def as_torchvision(targets: list[DetectionTargets]) -> list[dict[str, Tensor]]:
    return [
        {"boxes": truth.boxes, "labels": truth.labels + 1, "masks": truth.masks.to(torch.uint8)}
        for truth in targets
    ]


@pytest.mark.parametrize(
    "plain",
    [
        pytest.param(False, id="torchvision's ops"),
        pytest.param(True, id="plain ops", marks=pytest.mark.slow),
    ],
)
def test_training_step_has_the_losses_of_torchvision(
    model: Any, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same body, same weights, same draws: every loss, and the gradient that reaches the pyramid.

    Anchors and proposals are drawn after the body has run, which seeds them.
    """
    if plain:
        monkeypatch.setattr(ops, "_torchvision_ops", lambda: None)
    model.train()
    detector = detector_like(model, LABELS).train()
    seeding = model.backbone.register_forward_pre_hook(lambda *_: torch.manual_seed(7) and None)
    targets = [random_targets(count, SIZE, len(LABELS), count) for count in (7, 4)]
    inputs, _ = model.transform(pictures())
    assert inputs.tensors.shape[-2:] == SIZE
    model.backbone.body.requires_grad_(False)  # the gradient of the pyramid's weights says enough
    first_weight = next(model.backbone.fpn.parameters())

    def gradient(losses: dict[str, Tensor]) -> Tensor:
        (grad,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), first_weight)
        return grad

    expected = model(pictures(), as_torchvision(targets))
    losses = detector.losses(inputs.tensors, targets)
    seeding.remove()
    assert {THEIR_NAMES[name] for name in losses} == set(expected)
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[THEIR_NAMES[name]].item(), rel=1e-4), name
        assert value > 1e-3, name
    ours, theirs = gradient(losses), gradient(expected)
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_detections_are_those_of_torchvision(model: Any) -> None:
    model.eval()
    detector = detector_like(model, LABELS).eval()
    with torch.inference_mode():
        inputs, _ = model.transform(pictures())
        features = model.backbone(inputs.tensors)
        proposals, _ = model.rpn(inputs, features, None)
        expected, _ = model.roi_heads(features, proposals, inputs.image_sizes, None)
        found = detector.detect(inputs.tensors)
    for mine, other in zip(found, expected, strict=True):
        assert len(mine) == len(other["scores"]) == 20
        assert set(mine.labels.tolist()) == {0, 1}
        assert torch.equal(mine.labels + 1, other["labels"])
        assert torch.allclose(mine.scores, other["scores"], atol=1e-5)
        assert torch.allclose(mine.boxes, other["boxes"], atol=1e-3)
        assert torch.allclose(mine.masks, other["masks"][:, 0], atol=1e-4)


def heads(config: CascadeConfig, seed: int = 0) -> tuple[DetectionHeads, list[Tensor]]:
    """Fresh heads and random maps of two images."""
    torch.manual_seed(seed)
    module = DetectionHeads(config, config.channels, PYRAMID_STRIDES)
    maps = [torch.randn(2, config.channels, SIZE[0] // s, SIZE[1] // s) for s in PYRAMID_STRIDES]
    return module, maps


SMALL = replace(
    NANO, labels=LABELS, channels=16, boxes=replace(NANO.boxes, hidden=(32,)), selection=SelectionConfig(0.0)
)


def test_every_stage_has_its_losses_and_every_weight_a_gradient() -> None:
    module, maps = heads(SMALL)
    targets = [random_targets(count, SIZE, len(LABELS), count) for count in (6, 2)]
    losses = module.losses([part.requires_grad_() for part in maps], SIZE, targets)
    assert list(losses) == [
        *("objectness", "proposal_box", "class_1", "box_1", "class_2", "box_2", "class_3", "box_3", "mask")
    ]
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert maps[0].grad is not None
    assert maps[0].grad.any()


def test_stages_refine_and_demand_more() -> None:
    """Later stages match at a higher IoU, on boxes that the stage before has moved."""
    regions = heads(SMALL)[0].regions
    assert [matcher.foreground_iou for matcher in regions.matchers] == [0.5, 0.6, 0.7]
    truth = torch.tensor([[40.0, 30, 100, 90]])
    proposal = truth + torch.tensor([[9.0, 6, 9, 6]])  # IoU 0.62
    assert 0.6 < box_iou(truth, proposal).item() < 0.7
    assert [int(matcher(truth, proposal)) for matcher in regions.matchers] == [0, 0, -1]
    # One unit of dx is a tenth of the width in the first stage, a twentieth in the second.
    codes = torch.tensor([[[-1.5, -1.0, 0.0, 0.0]]])
    for number, left, top in ((0, 40.0, 30.0), (1, 44.5, 33.0)):
        [moved] = regions._refine(number, codes, [proposal], SIZE)
        assert moved[0].tolist() == pytest.approx([left, top, left + 60, top + 60])


def test_scores_are_the_mean_of_the_stages_and_boxes_those_of_the_last() -> None:
    module, maps = heads(SMALL)
    module.eval()
    proposals = [random_boxes(5, SIZE, 0, smallest=20.0), random_boxes(4, SIZE, 1, smallest=20.0)]
    for stage, bias in zip(module.regions.stages, (0.0, 1.0, 5.0), strict=True):
        torch.nn.init.zeros_(stage.classify.weight)
        torch.nn.init.zeros_(stage.regress.weight)
        stage.classify.bias.data = torch.tensor([0.0, bias, 0.0])
        stage.regress.bias.data = torch.tensor([1.0, 0.0, 0.0, 0.0])
    found = module.regions.detect(maps, proposals, SIZE)
    probability = torch.stack([torch.tensor([0.0, b, 0.0]).softmax(0) for b in (0.0, 1.0, 5.0)]).mean(0)
    shift = 1 / 10 + 1 / 20 + 1 / 30
    for detections, boxes in zip(found, proposals, strict=True):
        objects = detections.labels == 0
        assert detections.scores[objects].tolist() == pytest.approx(
            [probability[1].item()] * int(objects.sum())
        )
        width = boxes[:, 2] - boxes[:, 0]
        right = (boxes[:, 2] + shift * width).clamp(max=SIZE[1])
        assert sorted(detections.boxes[objects, 2].tolist()) == pytest.approx(
            sorted(right.tolist()), rel=1e-5
        )


@pytest.mark.parametrize("counts", [(0, 3), (0, 0)])
def test_images_without_objects_train(counts: tuple[int, int]) -> None:
    module, maps = heads(SMALL)
    losses = module.losses(maps, SIZE, [random_targets(c, SIZE, len(LABELS), 5) for c in counts])
    assert all(value.isfinite() for value in losses.values())
    assert (losses["mask"] > 0) == (losses["box_1"] > 0) == (sum(counts) > 0)
    torch.stack(list(losses.values())).sum().backward()


def test_reduced_precision_gives_the_same_losses() -> None:
    module, maps = heads(SMALL)
    targets = [random_targets(count, SIZE, len(LABELS), count) for count in (6, 2)]
    values = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = module.losses(maps, SIZE, targets)
        assert {value.dtype for value in losses.values()} == {torch.float32}
        values.append([value.item() for value in losses.values()])
    assert values[1] == pytest.approx(values[0], rel=0.05)


def test_nothing_found_is_empty() -> None:
    module, maps = heads(replace(SMALL, selection=SelectionConfig(score_threshold=1.0)))
    for found in module.eval().detect(maps, SIZE):
        assert found.boxes.shape == (0, 4)
        assert found.masks.shape == (0, 28, 28)


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_duplicates_are_removed_or_lowered(nms: Any) -> None:
    """Twelve boxes, each twice: hard NMS leaves one of each pair, soft NMS both, the second with a lower score."""
    selection = SelectionConfig(score_threshold=0.01, nms=nms, max_objects=100)
    module, maps = heads(replace(SMALL, labels=("Object",), selection=selection))
    for stage in module.regions.stages:
        torch.nn.init.zeros_(stage.regress.weight)
    boxes = torch.tensor(
        [[40.0 * (i % 4), 40.0 * (i // 4), 40.0 * (i % 4) + 30, 40.0 * (i // 4) + 30] for i in range(12)]
    )
    [found, _] = module.eval().regions.detect(maps, [boxes.repeat(2, 1), boxes[:1]], SIZE)
    assert (found.scores.diff() <= 1e-6).all()
    assert len(found) == (12 if nms == "hard" else 24)
    if nms == "soft":
        assert found.scores[12:].max() < 0.2 * found.scores[:12].min()


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_at_most_max_objects_are_kept(nms: Any) -> None:
    selection = SelectionConfig(score_threshold=0.1, nms=nms, nms_iou=0.4, max_objects=15)
    module, maps = heads(replace(SMALL, selection=selection))
    for found in module.eval().detect(maps, SIZE):
        assert len(found) == 15
        assert (found.scores.diff() <= 0).all()
        overlap = box_iou(found.boxes, found.boxes) * (found.labels[:, None] == found.labels[None])
        assert overlap.fill_diagonal_(0).max() <= 0.4


def test_detector_runs_from_images_on_the_plain_backbone() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("beit3_nano_patch16", img_size=64)
    head = CascadeHead(backbone.embed_dim, replace(SMALL, selection=SelectionConfig(0.1)))
    detector = CascadeDetector.on_backbone(backbone, head).eval()
    images = torch.randn(2, 3, 64, 96)
    found = detector.detect(images)
    with torch.inference_mode():
        again = head.detect(backbone(images)["encoder_out"], (64, 96))
    assert [len(part) for part in found] == [len(part) for part in again]
    assert torch.allclose(found[0].boxes, again[0].boxes, atol=1e-4)
    assert (found[0].boxes[:, 2:] <= torch.tensor([96.0, 64.0])).all()
    assert set(detector.state_dict()) == (
        {f"features.backbone.{k}" for k in backbone.state_dict()}
        | {f"features.pyramid.{k}" for k in head.pyramid.state_dict()}
        | {f"heads.{k}" for k in head.heads.state_dict()}
    )


def test_published_sizes() -> None:
    """Sizes of detectron2's ViTDet recipe for the base model; parameters counted by hand for one box head."""
    head = DetectionHeads(BASE, BASE.channels, PYRAMID_STRIDES)
    conv, norm = 256 * 256 * 9, 2 * 256
    box_head = 4 * (conv + norm) + (256 * 49 * 1024 + 1024) + 2 * 1025 + 4 * 1025
    assert [sum(p.numel() for p in stage.parameters()) for stage in head.regions.stages] == [box_head] * 3
    mask_head = 4 * (conv + norm) + (256 * 256 * 4 + 256) + 257
    assert sum(p.numel() for p in head.regions.mask_head.parameters()) == mask_head
    proposal_head = 2 * (conv + 256) + 257 * 3 + 257 * 12
    assert sum(p.numel() for p in head.proposals.parameters()) == proposal_head
    assert sum(p.numel() for p in CascadeHead(192, NANO).parameters()) < 3_000_000


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BoxConfig(stage_ious=(0.5, 0.6)), "one entry per stage"),
        (lambda: BoxConfig(class_agnostic=False), "several stages"),
        (lambda: BoxConfig(hidden=()), "at least one width"),
        (lambda: CascadeConfig(labels=()), "different names"),
        (lambda: CascadeConfig(labels=("Object", "Object")), "different names"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_boxes_are_pooled_from_the_level_of_their_size() -> None:
    from mca_perception.segmentation.cascade.pooling import assign_levels

    sides = torch.tensor([10.0, 111.0, 112.0, 223.0, 224.0, 448.0, 5000.0])
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), sides, sides], dim=1)
    size = PoolingConfig().canonical_size
    assert assign_levels(boxes, (4, 8, 16, 32), size).tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert assign_levels(boxes, (8, 16), size).tolist() == [0, 0, 0, 0, 1, 1, 1]
