"""The stages after the proposals: boxes are classified and refined, then masks are drawn ("Cascade R-CNN")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.segmentation.cascade.boxes import clip_boxes, decode_boxes, encode_boxes, has_size
from mca_perception.segmentation.cascade.config import CascadeConfig
from mca_perception.segmentation.cascade.heads import BoxHead, MaskHead
from mca_perception.segmentation.cascade.matching import Matcher, Sampler
from mca_perception.segmentation.cascade.ops import batched_nms, roi_align, soft_nms
from mca_perception.segmentation.cascade.pooling import pool_boxes
from mca_perception.segmentation.cascade.targets import Detections, DetectionTargets

__all__ = ["RegionHeads"]

# The level for large proposals only is not pooled from.
_POOLED_LEVELS = 4
# Detections with a shorter side, in pixels, are dropped.
MIN_BOX_SIDE = 1e-2

Size = tuple[int, int]


class _Matched(NamedTuple):
    """Proposals of one image and the object (or background) each belongs to."""

    boxes: Tensor
    matches: Tensor


class RegionHeads(nn.Module):
    """Box stages and mask head on RoIAlign features of maps with the given strides."""

    def __init__(self, config: CascadeConfig, channels: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.strides = strides[:_POOLED_LEVELS]
        boxes = config.boxes
        self.stages = nn.ModuleList(BoxHead(config, channels) for _ in boxes.stage_ious)
        self.mask_head = MaskHead(config, channels)
        self.matchers = [Matcher(iou, iou) for iou in boxes.stage_ious]
        self.sampler = Sampler(boxes.samples, boxes.positive_fraction)

    def losses(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        image_size: Size,
        targets: Sequence[DetectionTargets],
    ) -> dict[str, Tensor]:
        """Losses of every box stage and of the masks.

        The first stage and the masks train on sampled proposals, the objects' own boxes among them; every later stage
        on the boxes of the one before, matched anew at its own IoU.

        Args:
            maps: ``[N, C, h, w]`` per level.
            proposals: ``[K_i, 4]`` xyxy in pixels, per image.
            image_size: ``(height, width)`` of the network's input.
            targets: truth per image.

        Returns:
            ``class_<stage>``, ``box_<stage>`` (from 1) and ``mask``.
        """
        sampled = [self._sample(*pair) for pair in zip(proposals, targets, strict=True)]
        losses: dict[str, Tensor] = {}
        batch = sampled
        for number in range(len(self.stages)):
            boxes = [part.boxes for part in batch]
            logits, codes = self._stage(number, maps, boxes)
            losses |= self._box_losses(number, logits, codes, batch, targets)
            if number + 1 < len(self.stages):
                refined = self._refine(number, codes.detach(), boxes, image_size)
                batch = [
                    self._match(number + 1, part[has_size(part, MIN_BOX_SIDE)], truth)
                    for part, truth in zip(refined, targets, strict=True)
                ]
        return {**losses, "mask": self._mask_loss(maps, sampled, targets)}

    def _match(self, number: int, boxes: Tensor, truth: DetectionTargets) -> _Matched:
        return _Matched(boxes, self.matchers[number](truth.boxes, boxes))

    def _sample(self, proposals: Tensor, truth: DetectionTargets) -> _Matched:
        boxes, matches = self._match(0, torch.cat([proposals, truth.boxes]), truth)
        drawn = self.sampler(matches)
        return _Matched(boxes[drawn], matches[drawn])

    def _stage(self, number: int, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits and box codes of one stage for the boxes of all images."""
        pooled = self._pool(maps, boxes, self.config.boxes.resolution)
        # The maps receive the mean of the stages' gradients, not their sum.
        share = 1 / len(self.stages)
        logits, codes = self.stages[number](pooled * share + pooled.detach() * (1 - share))
        return logits, codes

    def _pool(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], resolution: int) -> Tensor:
        return pool_boxes(maps[: len(self.strides)], self.strides, boxes, resolution, self.config.pooling)

    def _refine(self, number: int, codes: Tensor, boxes: Sequence[Tensor], image_size: Size) -> list[Tensor]:
        """Boxes of each image after a stage that is not the last, clipped."""
        weights = self.config.boxes.stage_weights[number]
        decoded = clip_boxes(decode_boxes(codes[:, 0], torch.cat(list(boxes)), weights), image_size)
        return list(torch.split(decoded, [len(part) for part in boxes]))

    def _box_losses(
        self,
        number: int,
        logits: Tensor,
        codes: Tensor,
        batch: Sequence[_Matched],
        targets: Sequence[DetectionTargets],
    ) -> dict[str, Tensor]:
        """Mean cross-entropy, and smooth L1 of the positives' codes summed over the number of boxes."""
        classes, wanted, objects = [], [], []
        weights = self.config.boxes.stage_weights[number]
        for part, truth in zip(batch, targets, strict=True):
            positive = part.matches >= 0
            labels = torch.zeros_like(part.matches)
            labels[positive] = 1 + truth.labels[part.matches[positive]]
            classes.append(labels)
            objects.append(truth.labels[part.matches[positive]])
            wanted.append(encode_boxes(truth.boxes[part.matches[positive]], part.boxes[positive], weights))
        labels = torch.cat(classes)
        channel = torch.cat(objects) if codes.shape[1] > 1 else torch.zeros_like(torch.cat(objects))
        predicted = codes[labels > 0, channel]
        box = F.smooth_l1_loss(predicted, torch.cat(wanted), beta=self.config.smooth_l1_beta, reduction="sum")
        count = max(1, len(labels))
        return {
            f"class_{number + 1}": F.cross_entropy(logits, labels, reduction="sum") / count,
            f"box_{number + 1}": box / count,
        }

    def _mask_loss(
        self, maps: Sequence[Tensor], batch: Sequence[_Matched], targets: Sequence[DetectionTargets]
    ) -> Tensor:
        """Mean binary cross-entropy of the true class' mask inside every positive proposal."""
        boxes = [part.boxes[part.matches >= 0] for part in batch]
        objects = [part.matches[part.matches >= 0] for part in batch]
        logits = self.mask_head(self._pool(maps, boxes, self.config.masks.resolution))
        if len(logits) == 0:
            return logits.sum() * 0
        labels = torch.cat([truth.labels[index] for truth, index in zip(targets, objects, strict=True)])
        wanted = torch.cat(
            [
                self._project_masks(truth.masks, index, part, logits.shape[-1])
                for truth, index, part in zip(targets, objects, boxes, strict=True)
            ]
        )
        predicted = logits[torch.arange(len(labels), device=labels.device), labels]
        return F.binary_cross_entropy_with_logits(predicted, wanted)

    def _project_masks(self, masks: Tensor, objects: Tensor, boxes: Tensor, resolution: int) -> Tensor:
        """Coverage ``[K, S, S]`` of each box's bins by the mask of its object."""
        rois = torch.cat([objects[:, None].to(boxes), boxes], dim=1)
        return roi_align(masks[:, None].float(), rois, resolution, 1.0, 0, self.config.pooling.aligned)[:, 0]

    def detect(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], image_size: Size
    ) -> list[Detections]:
        """Objects of each image: class scores are the mean over the stages, boxes those of the last."""
        boxes = list(proposals)
        probabilities: list[Tensor] = []
        for number in range(len(self.stages)):
            logits, codes = self._stage(number, maps, boxes)
            probabilities.append(logits.softmax(dim=-1))
            if number + 1 < len(self.stages):
                boxes = self._refine(number, codes, boxes, image_size)
        weights = self.config.boxes.stage_weights[-1]
        decoded = decode_boxes(codes, torch.cat(boxes)[:, None], weights)
        scores = torch.stack(probabilities).mean(dim=0)[:, 1:]
        counts = [len(part) for part in boxes]
        found = [
            self._select(part_scores, clip_boxes(part_boxes, image_size))
            for part_scores, part_boxes in zip(
                torch.split(scores, counts), torch.split(decoded, counts), strict=True
            )
        ]
        return self._add_masks(maps, found)

    def _select(self, scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels that survive the threshold and NMS, from ``[K, C]`` and ``[K, B, 4]``."""
        rules = self.config.selection
        confident = (scores > rules.score_threshold) & has_size(boxes, MIN_BOX_SIDE)
        row, labels = confident.nonzero(as_tuple=True)
        kept_scores = scores[row, labels]
        kept_boxes = boxes[row, labels if boxes.shape[1] > 1 else torch.zeros_like(labels)]
        if rules.nms == "soft":
            kept, kept_scores = soft_nms(
                kept_boxes,
                kept_scores,
                labels,
                sigma=rules.sigma,
                min_score=rules.score_threshold,
                limit=rules.max_objects,
            )
            return kept_boxes[kept], kept_scores, labels[kept]
        kept = batched_nms(kept_boxes, kept_scores, labels, rules.nms_iou)[: rules.max_objects]
        return kept_boxes[kept], kept_scores[kept], labels[kept]

    def _add_masks(
        self, maps: Sequence[Tensor], found: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> list[Detections]:
        pooled = self._pool(maps, [boxes for boxes, _, _ in found], self.config.masks.resolution)
        logits = self.mask_head(pooled)
        labels = torch.cat([part for _, _, part in found])
        masks = logits[torch.arange(len(labels), device=labels.device), labels].sigmoid()
        counts = [len(scores) for _, scores, _ in found]
        return [Detections(*part, mask) for part, mask in zip(found, torch.split(masks, counts), strict=True)]
