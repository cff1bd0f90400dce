"""The learned parts after RoIAlign, each a static graph on pooled features."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.segmentation.cascade.config import CascadeConfig
from mca_perception.segmentation.cascade.pyramid import ChannelNorm

__all__ = ["BoxHead", "MaskHead", "conv_blocks"]


def conv_blocks(channels: int, count: int, layer_norm: bool) -> list[nn.Module]:
    """``count`` times a 3x3 convolution, LayerNorm if wanted, and ReLU."""
    layers: list[nn.Module] = []
    for _ in range(count):
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=not layer_norm)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        layers += [conv, *([ChannelNorm(channels)] if layer_norm else []), nn.ReLU()]
    return layers


class BoxHead(nn.Module):
    """Class scores and box codes of pooled proposals: one stage of the cascade."""

    def __init__(self, config: CascadeConfig, channels: int) -> None:
        super().__init__()
        boxes = config.boxes
        self.convs = nn.Sequential(*conv_blocks(channels, boxes.convs, config.layer_norm))
        widths = (channels * boxes.resolution**2, *boxes.hidden)
        self.hidden = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.classify = nn.Linear(widths[-1], 1 + len(config.labels))
        self.regress = nn.Linear(widths[-1], 4 * (1 if boxes.class_agnostic else len(config.labels)))
        for layer, deviation in ((self.classify, 0.01), (self.regress, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Score and regress.

        Args:
            pooled: ``[K, channels, S, S]``.

        Returns:
            float32 class logits ``[K, 1 + C]``, background first, and box codes ``[K, B, 4]`` with ``B`` = 1 when
            class-agnostic, else ``C``.
        """
        hidden = self.convs(pooled).flatten(1)
        for layer in self.hidden:
            hidden = F.relu(layer(hidden))
        return self.classify(hidden).float(), self.regress(hidden).float().unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Mask logits of pooled boxes, one mask per class."""

    def __init__(self, config: CascadeConfig, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*conv_blocks(channels, config.masks.convs, config.layer_norm))
        self.enlarge = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.classify = nn.Conv2d(channels, len(config.labels), 1)
        nn.init.kaiming_normal_(self.enlarge.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classify.weight, std=0.001)
        for bias in (self.enlarge.bias, self.classify.bias):
            assert bias is not None
            nn.init.zeros_(bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """``[K, channels, S, S]`` to float32 logits ``[K, C, 2S, 2S]``."""
        return self.classify(F.relu(self.enlarge(self.convs(pooled)))).float()
