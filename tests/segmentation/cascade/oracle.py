"""torchvision's Mask R-CNN beside ours: its weights under our names, its body under our heads."""

from __future__ import annotations

import re
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mca_perception.segmentation.cascade.config import MASK_RCNN, SelectionConfig
from mca_perception.segmentation.cascade.detector import CascadeDetector, DetectionHeads
from mca_perception.segmentation.cascade.pyramid import PYRAMID_STRIDES, FeatureMaps

# torchvision's name, ours, and rows to drop in front: those it keeps for the background class.
RENAMES = (
    (r"rpn\.head\.conv\.(\d)\.0\.", lambda m: f"proposals.head.convs.{2 * int(m[1])}.", 0),
    (r"rpn\.head\.cls_logits\.", "proposals.head.objectness.", 0),
    (r"rpn\.head\.bbox_pred\.", "proposals.head.codes.", 0),
    (r"roi_heads\.box_head\.fc6\.", "regions.stages.0.hidden.0.", 0),
    (r"roi_heads\.box_head\.fc7\.", "regions.stages.0.hidden.1.", 0),
    (r"roi_heads\.box_predictor\.cls_score\.", "regions.stages.0.classify.", 0),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "regions.stages.0.regress.", 4),
    (r"roi_heads\.mask_head\.(\d)\.0\.", lambda m: f"regions.mask_head.convs.{2 * int(m[1])}.", 0),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "regions.mask_head.enlarge.", 0),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "regions.mask_head.classify.", 1),
)


# As published but for the numbers of boxes, which only cost time.
CONFIG = replace(
    MASK_RCNN,
    proposals=replace(MASK_RCNN.proposals, candidates=(400, 200), proposals=(300, 100)),
    boxes=replace(MASK_RCNN.boxes, samples=96),
    selection=SelectionConfig(score_threshold=0.2, max_objects=20),
)


class ResNetMaps(FeatureMaps):
    """torchvision's ResNet with a feature pyramid network as a provider of maps."""

    strides = PYRAMID_STRIDES
    channels = 256

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images).values())


def mask_rcnn(torchvision: ModuleType, classes: int, seed: int = 0) -> Any:
    """torchvision's Mask R-CNN on a ResNet-50 FPN; heads spread far enough that boxes move and classes differ."""
    torch.manual_seed(seed)
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=1 + classes,
        min_size=128,
        max_size=192,
        rpn_pre_nms_top_n_train=CONFIG.proposals.candidates[0],
        rpn_pre_nms_top_n_test=CONFIG.proposals.candidates[1],
        rpn_post_nms_top_n_train=CONFIG.proposals.proposals[0],
        rpn_post_nms_top_n_test=CONFIG.proposals.proposals[1],
        box_batch_size_per_image=CONFIG.boxes.samples,
        box_score_thresh=CONFIG.selection.score_threshold,
        box_detections_per_img=CONFIG.selection.max_objects,
    )
    for module, deviation in (
        (model.rpn.head.cls_logits, 0.1),
        (model.rpn.head.bbox_pred, 0.03),
        (model.roi_heads.box_predictor.cls_score, 0.2),
        (model.roi_heads.box_predictor.bbox_pred, 0.2),
    ):
        nn.init.normal_(module.weight, std=deviation)
    return model


def detector_like(model: Any, labels: tuple[str, ...]) -> CascadeDetector:
    """Our Mask R-CNN on the very same body, with a copy of the heads' weights."""
    heads = DetectionHeads(replace(CONFIG, labels=labels), ResNetMaps.channels, ResNetMaps.strides)
    heads.load_state_dict(translate(model.state_dict()))
    return CascadeDetector(ResNetMaps(model.backbone), heads)


def translate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's heads under our names."""
    renamed = {}
    for key, value in state.items():
        for pattern, ours, background_rows in RENAMES:
            name, hits = re.subn(f"^{pattern}", ours, key)  # type: ignore[call-overload]
            if hits:
                renamed[name] = value[background_rows:]
    return renamed
