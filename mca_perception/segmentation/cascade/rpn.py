"""Region proposal network: where objects could be, before anything looks at what they are ("Faster R-CNN")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.segmentation.cascade.anchors import base_anchors, grid_anchors
from mca_perception.segmentation.cascade.boxes import clip_boxes, decode_boxes, encode_boxes, has_size
from mca_perception.segmentation.cascade.config import CascadeConfig
from mca_perception.segmentation.cascade.matching import Matcher, Sampler
from mca_perception.segmentation.cascade.ops import batched_nms
from mca_perception.segmentation.cascade.targets import DetectionTargets

__all__ = ["ProposalHead", "ProposalNetwork", "ProposalOutput"]

PROPOSAL_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
# Proposals with a shorter side, in pixels, are dropped.
MIN_PROPOSAL_SIDE = 1e-3


class ProposalOutput(NamedTuple):
    """Predictions for the anchors of each level, in the order of :func:`~.anchors.grid_anchors`.

    Attributes:
        objectness: logits ``[N, anchors of the level]``.
        codes: box codes ``[N, anchors of the level, 4]``.
    """

    objectness: list[Tensor]
    codes: list[Tensor]


class ProposalHead(nn.Module):
    """The static part: convolutions shared by all levels."""

    def __init__(self, channels: int, anchors: int, convs: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs)]
        self.convs = nn.Sequential(*(part for conv in layers for part in (conv, nn.ReLU())))
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.codes = nn.Conv2d(channels, 4 * anchors, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> ProposalOutput:
        """Maps ``[N, C, h, w]`` to float32 predictions for ``h * w * A`` anchors per level."""
        objectness, codes = [], []
        for features in maps:
            hidden = self.convs(features)
            objectness.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1).float())
            code = self.codes(hidden).unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2)
            codes.append(code.flatten(1, 3).float())
        return ProposalOutput(objectness, codes)


class ProposalNetwork(nn.Module):
    """Head, anchors, selection of proposals and losses."""

    def __init__(self, config: CascadeConfig, channels: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        settings = config.proposals
        if len(settings.anchor_sizes) != len(strides):
            raise ValueError(
                f"anchor_sizes {settings.anchor_sizes} need one entry per map, strides are {strides}"
            )
        self.settings = settings
        self.strides = strides
        self.smooth_l1_beta = config.smooth_l1_beta
        self.head = ProposalHead(channels, len(settings.anchor_ratios), settings.convs)
        self.matcher = Matcher(settings.foreground_iou, settings.background_iou, keep_best=True)
        self.sampler = Sampler(settings.samples, settings.positive_fraction)

    def anchors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Anchors ``[h * w * A, 4]`` of each map."""
        return [
            grid_anchors(
                base_anchors(size, self.settings.anchor_ratios).to(features.device),
                features.shape[-2],
                features.shape[-1],
                stride,
            )
            for size, stride, features in zip(self.settings.anchor_sizes, self.strides, maps, strict=True)
        ]

    @torch.no_grad()
    def propose(
        self, output: ProposalOutput, anchors: list[Tensor], image_size: tuple[int, int]
    ) -> list[Tensor]:
        """Best boxes of each image, ``[K_i, 4]`` xyxy in pixels, best first."""
        phase = 0 if self.training else 1
        scores, boxes, levels = [], [], []
        for level, (objectness, codes, level_anchors) in enumerate(zip(*output, anchors, strict=True)):
            count = min(self.settings.candidates[phase], objectness.shape[1])
            best, index = objectness.topk(count, dim=1)
            chosen = codes.gather(1, index[..., None].expand(-1, -1, 4))
            scores.append(best.sigmoid())
            boxes.append(clip_boxes(decode_boxes(chosen, level_anchors[index], PROPOSAL_WEIGHTS), image_size))
            levels.append(torch.full_like(index, level))
        joined = (torch.cat(parts, dim=1) for parts in (scores, boxes, levels))
        return [self._select(score, box, level, phase) for score, box, level in zip(*joined, strict=True)]

    def _select(self, scores: Tensor, boxes: Tensor, levels: Tensor, phase: int) -> Tensor:
        usable = has_size(boxes, MIN_PROPOSAL_SIDE)
        scores, boxes, levels = scores[usable], boxes[usable], levels[usable]
        kept = batched_nms(boxes, scores, levels, self.settings.nms_iou)
        return boxes[kept[: self.settings.proposals[phase]]]

    def losses(
        self, output: ProposalOutput, anchors: list[Tensor], targets: Sequence[DetectionTargets]
    ) -> dict[str, Tensor]:
        """Losses of the sampled anchors.

        Returns:
            ``objectness``, the mean binary cross-entropy, and ``proposal_box``, smooth L1 of the positives' codes
            summed and divided by the number of sampled anchors.
        """
        boxes = torch.cat(anchors)
        objectness, codes = torch.cat(output.objectness, dim=1), torch.cat(output.codes, dim=1)
        logits, labels, predicted, wanted = [], [], [], []
        for index, truth in enumerate(targets):
            matches = self.matcher(truth.boxes, boxes)
            drawn = self.sampler(matches)
            positive = drawn[matches[drawn] >= 0]
            logits.append(objectness[index, drawn])
            labels.append((matches[drawn] >= 0).float())
            predicted.append(codes[index, positive])
            wanted.append(encode_boxes(truth.boxes[matches[positive]], boxes[positive], PROPOSAL_WEIGHTS))
        all_logits = torch.cat(logits)
        box = F.smooth_l1_loss(
            torch.cat(predicted), torch.cat(wanted), beta=self.smooth_l1_beta, reduction="sum"
        )
        return {
            "objectness": F.binary_cross_entropy_with_logits(all_logits, torch.cat(labels)),
            "proposal_box": box / max(1, len(all_logits)),
        }
