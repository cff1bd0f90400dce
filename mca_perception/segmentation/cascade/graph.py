"""The cascade as one graph for ONNX Runtime: one image's tokens in, its detections out.

NMS and RoIAlign are ONNX's standard operators. They stand in the exported program as two operators of our own, whose
plain versions are those of training, so that the module runs in torch as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, library, nn

from mca_perception.errors import RecipeError
from mca_perception.segmentation.cascade.boxes import clip_boxes, decode_boxes, has_size
from mca_perception.segmentation.cascade.config import PoolingConfig
from mca_perception.segmentation.cascade.detector import CascadeHead
from mca_perception.segmentation.cascade.ops import nms
from mca_perception.segmentation.cascade.pooling import assign_levels, pool_boxes
from mca_perception.segmentation.cascade.roi import MIN_BOX_SIDE
from mca_perception.segmentation.cascade.rpn import MIN_PROPOSAL_SIDE, PROPOSAL_WEIGHTS

__all__ = ["OUTPUTS", "CascadeGraph", "largest_detection_difference", "onnx_translations"]

OUTPUTS = ("scores", "labels", "boxes", "masks")
# Score of a box that must not be chosen; thresholds are at least this.
_UNUSABLE = -1.0
# Detections of two runtimes are the same one within these: pixels, and probability.
_SAME_BOX, _SAME_SCORE = 0.5, 1e-3


class CascadeGraph(nn.Module):
    """:meth:`~.detector.CascadeHead.detect` for one image of a fixed size, with the score threshold as an input.

    Masks are drawn only for detections above the threshold, so it decides what an image costs. A higher threshold
    gives exactly the detections of a lower one that exceed it.
    """

    def __init__(self, head: CascadeHead, image_size: tuple[int, int]) -> None:
        """Wrap a head.

        Args:
            head: in evaluation mode.
            image_size: ``(height, width)`` of the network's input.

        Raises:
            RecipeError: ONNX has no operator for what the head's configuration asks.
        """
        super().__init__()
        config = head.config
        if config.selection.nms != "hard" or not config.boxes.class_agnostic:
            raise RecipeError(
                "the cascade's graph needs nms: hard and class-agnostic boxes; choose the preset nano or base"
            )
        self.head = head
        self.image_size = image_size

    def forward(self, features: Tensor, score_threshold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            features: ``[1, 1 + T, D]`` backbone output of one image.
            score_threshold: ``[1]``; detections have a higher score.

        Returns:
            Best first: ``scores [M]``, ``labels [M]`` int64, ``boxes [M, 4]`` xyxy in input pixels and ``masks
            [M, S, S]`` probabilities over the boxes.
        """
        regions, config = self.head.heads.regions, self.head.config
        maps = self.head.maps(features, self.image_size)
        boxes = self._proposals(maps)
        probabilities: list[Tensor] = []
        for stage, weights in zip(regions.stages, config.boxes.stage_weights, strict=True):
            logits, codes = stage(self._pool(maps, boxes, config.boxes.resolution))
            probabilities.append(logits.softmax(dim=-1))
            boxes = clip_boxes(decode_boxes(codes[:, 0], boxes, weights), self.image_size)
        scores = torch.stack(probabilities).mean(dim=0)[:, 1:]
        table = torch.where(has_size(boxes, MIN_BOX_SIDE), scores.T, _UNUSABLE)
        kept = _choose(boxes, table, score_threshold, config.selection.nms_iou, config.selection.max_objects)
        labels, rows = kept[:, 0], kept[:, 1]
        boxes = boxes[rows]
        logits = regions.mask_head(self._pool(maps, boxes, config.masks.resolution))
        channel = labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])
        return table[labels, rows], labels, boxes, logits.gather(1, channel)[:, 0].sigmoid()

    def _proposals(self, maps: Sequence[Tensor]) -> Tensor:
        """Best boxes of the region proposal network, ``[K, 4]``."""
        network = self.head.heads.proposals
        settings = network.settings
        output = network.head(maps)
        scores, boxes, counts = [], [], []
        for objectness, codes, anchors in zip(*output, network.anchors(maps), strict=True):
            counts.append(min(settings.candidates[1], objectness.shape[1]))
            best, index = objectness[0].topk(counts[-1])
            scores.append(best.sigmoid())
            decoded = decode_boxes(codes[0][index], anchors[index], PROPOSAL_WEIGHTS)
            boxes.append(clip_boxes(decoded, self.image_size))
        every = torch.cat(boxes)
        level = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        usable = (level == torch.arange(len(counts))[:, None]) & has_size(every, MIN_PROPOSAL_SIDE)
        table = torch.where(usable, torch.cat(scores), _UNUSABLE)
        kept = _choose(every, table, table.new_full((1,), _UNUSABLE), settings.nms_iou, settings.proposals[1])
        return every[kept[:, 1]]

    def _pool(self, maps: Sequence[Tensor], boxes: Tensor, resolution: int) -> Tensor:
        strides = self.head.heads.regions.strides
        pooling = self.head.config.pooling
        levels = assign_levels(boxes, strides, pooling.canonical_size)
        return _pool(
            list(maps[: len(strides)]),
            boxes,
            levels,
            list(strides),
            resolution,
            pooling.sampling_ratio,
            pooling.aligned,
        )


@library.custom_op("mca_perception::choose_boxes", mutates_args=())
def _choose(
    boxes: Tensor, scores: Tensor, score_threshold: Tensor, iou_threshold: float, limit: int
) -> Tensor:
    """NMS within each class.

    Args:
        boxes: ``[N, 4]`` xyxy, shared by the classes.
        scores: ``[C, N]``.
        score_threshold: ``[1]``; boxes with more take part.
        iou_threshold: overlap above which the worse box is removed.
        limit: boxes to keep at most.

    Returns:
        int64 ``[M, 2]`` class and box of those kept, best first.
    """
    kept = []
    for label, row in enumerate(scores):
        members = (row > score_threshold).nonzero()[:, 0]
        chosen = members[nms(boxes[members], row[members], iou_threshold)]
        kept.append(torch.stack([torch.full_like(chosen, label), chosen], dim=1))
    pairs = torch.cat(kept)
    order = scores[pairs[:, 0], pairs[:, 1]].argsort(descending=True, stable=True)
    return pairs[order[:limit]]


@_choose.register_fake
def _(boxes: Tensor, scores: Tensor, score_threshold: Tensor, iou_threshold: float, limit: int) -> Tensor:
    count = library.get_ctx().new_dynamic_size(min=0, max=limit)
    return boxes.new_empty((count, 2), dtype=torch.long)


@library.custom_op("mca_perception::pool_boxes", mutates_args=())
def _pool(
    maps: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    resolution: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign of ``boxes [K, 4]`` of one image, each on the map of its level: ``[K, C, S, S]``."""
    pooled = boxes.new_zeros(len(boxes), maps[0].shape[1], resolution, resolution)
    config = PoolingConfig(sampling_ratio, aligned)
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        members = (levels == level).nonzero()[:, 0]
        pooled[members] = pool_boxes([features], [stride], [boxes[members]], resolution, config)
    return pooled


@_pool.register_fake
def _(
    maps: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    resolution: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return boxes.new_empty((boxes.shape[0], maps[0].shape[1], resolution, resolution))


def onnx_translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """What the two operators are in ONNX, for :func:`~mca_perception.deploy.export.export_graph`."""
    import onnxscript

    op: Any = onnxscript.opset20  # its annotations are for scripts, not for values

    def choose(boxes: Any, scores: Any, score_threshold: Any, iou_threshold: float, limit: int) -> Any:
        most = op.Constant(value_ints=[limit])
        found = op.NonMaxSuppression(
            op.Unsqueeze(boxes, [0]),
            op.Unsqueeze(scores, [0]),
            most,
            op.Constant(value_floats=[iou_threshold]),
            score_threshold,
        )
        pairs = op.Slice(found, [1], [3], [1])
        count = op.Min(op.Shape(pairs, start=0, end=1), most)
        _, order = op.TopK(op.GatherND(scores, pairs), count, axis=0)
        return op.Gather(pairs, order, axis=0)

    def pool(
        maps: Sequence[Any],
        boxes: Any,
        levels: Any,
        strides: Sequence[int],
        resolution: int,
        sampling_ratio: int,
        aligned: bool,
    ) -> Any:
        parts, places = [], []
        for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
            place = op.Squeeze(op.NonZero(op.Equal(levels, op.Constant(value_int=level))), [0])
            pooled = op.RoiAlign(
                features,
                op.Gather(boxes, place, axis=0),
                op.Mul(place, op.Constant(value_int=0)),  # all of the one image
                coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
                output_height=resolution,
                output_width=resolution,
                sampling_ratio=sampling_ratio,
                spatial_scale=1 / stride,
            )
            parts.append(pooled)
            places.append(place)
        place = op.Concat(*places, axis=0)
        _, order = op.TopK(place, op.Shape(place), axis=0, largest=0)
        return op.Gather(op.Concat(*parts, axis=0), order, axis=0)

    return {
        torch.ops.mca_perception.choose_boxes.default: choose,
        torch.ops.mca_perception.pool_boxes.default: pool,
    }


def largest_detection_difference(
    expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]], *, ties: float = 0.0
) -> float:
    """Largest difference of score and mask probabilities between the detections of two runtimes.

    Detections are the same one when they have the label in common, boxes within half a pixel and scores within 0.001;
    their order does not matter.

    Args:
        expected: ``OUTPUTS`` by name.
        found: the other runtime's.
        ties: share of the detections that the other need not have: rounding decides between boxes of one score.

    Returns:
        The difference; infinite when the two do not have the same detections.
    """
    free = np.ones(len(found["scores"]), np.bool_)
    differences = [0.0]
    for score, label, box, mask in zip(*(expected[name] for name in OUTPUTS), strict=True):
        scores = np.abs(found["scores"] - score)
        boxes = np.abs(found["boxes"] - box).max(axis=1)
        same = free & (found["labels"] == label) & (boxes <= _SAME_BOX) & (scores <= _SAME_SCORE)
        if same.any():
            twin = int(np.where(same, boxes, np.inf).argmin())
            free[twin] = False
            differences += [float(scores[twin]), float(np.abs(found["masks"][twin] - mask).max())]
    alone = max(len(expected["scores"]), len(free)) - (len(free) - int(free.sum()))
    return float("inf") if alone > ties * len(expected["scores"]) else max(differences)
