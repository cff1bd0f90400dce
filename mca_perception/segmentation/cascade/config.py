"""Sizes of the detector, with presets: the published base variant, nano, and torchvision's Mask R-CNN."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = [
    "BASE",
    "MASK_RCNN",
    "NANO",
    "PRESETS",
    "BoxConfig",
    "CascadeConfig",
    "MaskConfig",
    "PoolingConfig",
    "ProposalConfig",
    "SelectionConfig",
]

BoxWeights = tuple[float, float, float, float]


@dataclass(frozen=True)
class ProposalConfig:
    """Region proposal network.

    Attributes:
        anchor_sizes: side of the square anchor of each pyramid level, in input pixels.
        anchor_ratios: heights over widths of the anchors of each location.
        convs: 3x3 convolutions before the two predictions.
        foreground_iou: an anchor with at least this IoU is positive (and so is each object's best anchor).
        background_iou: an anchor with less is negative; between the two it is ignored.
        samples: anchors per image that enter the loss.
        positive_fraction: largest share of positives among them.
        candidates: best anchors per level before NMS, (training, inference).
        proposals: boxes per image after NMS, (training, inference).
        nms_iou: boxes of one level overlapping a better one by more are removed.
    """

    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    convs: int = 2
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    samples: int = 256
    positive_fraction: float = 0.5
    candidates: tuple[int, int] = (2000, 1000)
    proposals: tuple[int, int] = (1000, 1000)
    nms_iou: float = 0.7


@dataclass(frozen=True)
class PoolingConfig:
    """RoIAlign over the pyramid levels.

    Attributes:
        sampling_ratio: samples per bin and axis; 0 takes as many as the box has cells per bin.
        aligned: shift by half a cell, so that cell centres are where the map has them (detectron2's RoIAlignV2);
            torchvision's Mask R-CNN does without.
        canonical_size: side in pixels of the box that is pooled from stride 16; each halving goes a level finer
            ("Feature Pyramid Networks", Eq. 1).
    """

    sampling_ratio: int = 0
    aligned: bool = True
    canonical_size: float = 224.0


@dataclass(frozen=True)
class BoxConfig:
    """Box stages. One stage makes plain Mask R-CNN.

    Attributes:
        stage_ious: IoU from which a box is positive in each stage.
        stage_weights: factors on (dx, dy, dw, dh) of each stage's box code.
        samples: proposals per image that the first stage trains on.
        positive_fraction: largest share of positives among them.
        resolution: side of the pooled box features.
        convs: 3x3 convolutions of each stage's head.
        hidden: widths of its fully connected layers.
        class_agnostic: one box per proposal instead of one per class.
    """

    stage_ious: tuple[float, ...] = (0.5, 0.6, 0.7)
    stage_weights: tuple[BoxWeights, ...] = ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))
    samples: int = 512
    positive_fraction: float = 0.25
    resolution: int = 7
    convs: int = 4
    hidden: tuple[int, ...] = (1024,)
    class_agnostic: bool = True

    def __post_init__(self) -> None:
        if not self.stage_ious or len(self.stage_ious) != len(self.stage_weights):
            raise ValueError("stage_ious and stage_weights need one entry per stage, at least one")
        if len(self.stage_ious) > 1 and not self.class_agnostic:
            raise ValueError("several stages pass one box on: set class_agnostic=True or use one stage")
        if not self.hidden:
            raise ValueError("hidden needs at least one width")


@dataclass(frozen=True)
class MaskConfig:
    """Mask head: convolutions, a 2x2 deconvolution, one mask per class at twice ``resolution``."""

    resolution: int = 14
    convs: int = 4


@dataclass(frozen=True)
class SelectionConfig:
    """Which detections of an image are kept.

    Attributes:
        score_threshold: less confident detections are dropped.
        nms: ``hard`` removes overlapping boxes of a class, ``soft`` lowers their scores ("Soft-NMS", Gaussian).
        nms_iou: overlap above which ``hard`` removes.
        sigma: width of ``soft``'s Gaussian: scores are multiplied by exp(-IoU^2 / sigma).
        max_objects: detections kept per image.
    """

    score_threshold: float = 0.05
    nms: Literal["hard", "soft"] = "hard"
    nms_iou: float = 0.5
    sigma: float = 0.5
    max_objects: int = 100


@dataclass(frozen=True)
class CascadeConfig:
    """A detector; the defaults are those published for ViTDet with Cascade Mask R-CNN.

    Attributes:
        labels: foreground classes by name, in the order of the class scores after background.
        channels: width of the pyramid's maps and of the heads' convolutions.
        layer_norm: LayerNorm after the convolutions of the box and mask heads.
        smooth_l1_beta: where the box losses turn from quadratic to linear; 0 is L1.
        proposals: region proposal network.
        pooling: RoIAlign.
        boxes: box stages.
        masks: mask head.
        selection: what is kept at inference.
    """

    labels: tuple[str, ...] = ("Object",)
    channels: int = 256
    layer_norm: bool = True
    smooth_l1_beta: float = 0.0
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    boxes: BoxConfig = field(default_factory=BoxConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must be one or more different names, got {self.labels}")


BASE = CascadeConfig()
"""ViTDet-B with Cascade Mask R-CNN, as published (detectron2's ViTDet project), for inputs of 1024 pixels."""

NANO = CascadeConfig(
    channels=64,
    smooth_l1_beta=1 / 9,
    proposals=ProposalConfig(
        anchor_sizes=(16, 32, 64, 128, 256), convs=1, samples=128, candidates=(500, 300), proposals=(200, 100)
    ),
    pooling=PoolingConfig(sampling_ratio=2, canonical_size=112.0),
    boxes=BoxConfig(samples=64, convs=1, hidden=(128,)),
)
"""For small machines and inputs of 256 to 320 pixels: a quarter of the width, a tenth of the boxes."""

MASK_RCNN = replace(
    BASE,
    layer_norm=False,
    smooth_l1_beta=1 / 9,
    proposals=ProposalConfig(convs=1, proposals=(2000, 1000)),
    pooling=PoolingConfig(sampling_ratio=2, aligned=False),
    boxes=BoxConfig((0.5,), ((10, 10, 5, 5),), convs=0, hidden=(1024, 1024), class_agnostic=False),
)
"""The cascade switched off: Mask R-CNN with torchvision's choices, for comparison."""

PRESETS = {"nano": NANO, "base": BASE, "mask_rcnn": MASK_RCNN}
