"""The detector: heads on maps, maps from the plain backbone's tokens, and the whole from images to detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mca_perception.backbone import Backbone
from mca_perception.segmentation.cascade.config import CascadeConfig
from mca_perception.segmentation.cascade.pyramid import FeatureMaps, SimpleFeaturePyramid, tokens_to_map
from mca_perception.segmentation.cascade.roi import RegionHeads
from mca_perception.segmentation.cascade.rpn import ProposalNetwork
from mca_perception.segmentation.cascade.targets import Detections, DetectionTargets

__all__ = ["BackboneMaps", "CascadeDetector", "CascadeHead", "DetectionHeads"]

Size = tuple[int, int]


class DetectionHeads(nn.Module):
    """Proposals, box stages and masks on maps of given strides.

    What is learned lies in four static modules: ``proposals.head`` (convolutions on the maps), each of
    ``regions.stages`` (pooled features to scores and box codes) and ``regions.mask_head`` (pooled features to masks).
    What joins them (decoding, NMS, RoIAlign) has no weights.
    """

    def __init__(self, config: CascadeConfig, channels: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.proposals = ProposalNetwork(config, channels, strides)
        self.regions = RegionHeads(config, channels, strides)

    def losses(
        self, maps: Sequence[Tensor], image_size: Size, targets: Sequence[DetectionTargets]
    ) -> dict[str, Tensor]:
        """All losses of a batch; with one box stage the same as torchvision's Mask R-CNN.

        Args:
            maps: ``[N, C, h, w]`` per level.
            image_size: ``(height, width)`` of the images the maps were made from.
            targets: truth per image.
        """
        output = self.proposals.head(maps)
        anchors = self.proposals.anchors(maps)
        with torch.autocast(maps[0].device.type, enabled=False):
            losses = self.proposals.losses(output, anchors, targets)
            proposals = self.proposals.propose(output, anchors, image_size)
        return {**losses, **self.regions.losses(maps, proposals, image_size, targets)}

    @torch.no_grad()
    def detect(self, maps: Sequence[Tensor], image_size: Size) -> list[Detections]:
        """Objects in each image, in input pixels."""
        output = self.proposals.head(maps)
        proposals = self.proposals.propose(output, self.proposals.anchors(maps), image_size)
        return self.regions.detect(maps, proposals, image_size)


class CascadeHead(nn.Module):
    """Everything after the plain backbone: pyramid and detection heads."""

    def __init__(self, embed_dim: int, config: CascadeConfig) -> None:
        super().__init__()
        self.config = config
        self.pyramid = SimpleFeaturePyramid(embed_dim, config.channels)
        self.heads = DetectionHeads(config, config.channels, self.pyramid.strides)

    def maps(self, features: Tensor, image_size: Size) -> list[Tensor]:
        """Backbone output ``[N, 1 + T, D]`` of ``(height, width)`` images to the pyramid's maps."""
        return self.pyramid(tokens_to_map(features, image_size))

    def losses(
        self, features: Tensor, image_size: Size, targets: Sequence[DetectionTargets]
    ) -> dict[str, Tensor]:
        """Losses of a batch from the backbone's output."""
        return self.heads.losses(self.maps(features, image_size), image_size, targets)

    def detect(self, features: Tensor, image_size: Size) -> list[Detections]:
        """Objects in each image from the backbone's output."""
        return self.heads.detect(self.maps(features, image_size), image_size)


class BackboneMaps(FeatureMaps):
    """Backbone and pyramid as one provider of maps."""

    def __init__(self, backbone: Backbone, pyramid: SimpleFeaturePyramid) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.strides = pyramid.strides
        self.channels = pyramid.channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[N, 3, H, W]`` normalised images to five maps."""
        features = self.backbone(images)["encoder_out"]
        return self.pyramid(tokens_to_map(features, (images.shape[-2], images.shape[-1])))


class CascadeDetector(nn.Module):
    """From images to losses or detections, on any provider of maps.

    Example:
        >>> from mca_perception.backbone import create_backbone
        >>> from mca_perception.segmentation.cascade.config import NANO
        >>> backbone = create_backbone("beit3_nano_patch16")
        >>> detector = CascadeDetector.on_backbone(backbone, CascadeHead(backbone.embed_dim, NANO)).eval()
        >>> [found] = detector.detect(torch.zeros(1, 3, 64, 96))
        >>> tuple(found.masks.shape[1:])
        (28, 28)
    """

    def __init__(self, features: FeatureMaps, heads: DetectionHeads) -> None:
        super().__init__()
        self.features = features
        self.heads = heads

    @classmethod
    def on_backbone(cls, backbone: Backbone, head: CascadeHead) -> CascadeDetector:
        """The detector that a trained backbone and head make."""
        return cls(BackboneMaps(backbone, head.pyramid), head.heads)

    def losses(self, images: Tensor, targets: Sequence[DetectionTargets]) -> dict[str, Tensor]:
        """Losses of ``[N, 3, H, W]`` normalised images."""
        return self.heads.losses(self.features(images), (images.shape[-2], images.shape[-1]), targets)

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Detections]:
        """Objects in ``[N, 3, H, W]`` normalised images; boxes in their pixels."""
        return self.heads.detect(self.features(images), (images.shape[-2], images.shape[-1]))
