"""Edge segmentation head: dynamic mask kernels on the plain encoder, one static graph without RoIAlign or NMS.

Every stride-16 token predicts class scores and the weights of a 1x1 convolution; applied to stride-4 mask features
that convolution gives the mask of the object the token stands on (the idea of SOLOv2 and CondInst). The stride-4
features come from a simple feature pyramid over the last map only, as ViTDet does, plus a light image stem that
leaves the backbone plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKEN_STRIDE = 16
MASK_STRIDE = 4
# Terms of the polynomial in relative coordinates that every kernel adds to its mask: 1, x, y, x^2, xy, y^2.
POSITION_TERMS = 6
# Unit of the relative coordinates, in pixels: about the size of a common object at the network's input.
POSITION_UNIT = 64.0


@dataclass(frozen=True)
class SegmentationConfig:
    """Sizes of the head.

    Attributes:
        labels: foreground class names, in the order of the score channels.
        hidden_dim: width of the per-token head.
        pyramid_dim: channels at stride 4 (twice as many at stride 8).
        mask_dim: channels of the mask features that kernels multiply.
        max_objects: tokens ``K`` kept by :meth:`SegmentationHead.predict`.
    """

    labels: tuple[str, ...] = ("Object",)
    hidden_dim: int = 192
    pyramid_dim: int = 48
    mask_dim: int = 32
    max_objects: int = 100


class DenseOutput(NamedTuple):
    """What the head says about every token of ``N`` images.

    Attributes:
        class_logits: ``[N, T, C]``.
        kernels: ``[N, T, mask_dim + POSITION_TERMS]``.
        basis: ``[N, mask_dim + POSITION_TERMS, h, w]`` mask features at stride 4, coordinates last.
    """

    class_logits: Tensor
    kernels: Tensor
    basis: Tensor


def channel_norm(channels: int) -> nn.GroupNorm:
    """Batch-independent normalisation of a feature map."""
    return nn.GroupNorm(8, channels)


class ConvBlock(nn.Sequential):
    """3x3 convolution, normalisation, GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), channel_norm(outputs), nn.GELU()
        )


class MaskFeatures(nn.Module):
    """Stride-4 mask features from the last map (upsampled twice) and the image stem."""

    def __init__(self, embed_dim: int, config: SegmentationConfig) -> None:
        super().__init__()
        dim = config.pyramid_dim
        self.stem4 = nn.Sequential(nn.Conv2d(3, dim, MASK_STRIDE, MASK_STRIDE), channel_norm(dim), nn.GELU())
        self.stem8 = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False), channel_norm(2 * dim), nn.GELU()
        )
        self.up8 = nn.ConvTranspose2d(embed_dim, 2 * dim, 2, 2)
        self.fuse8 = ConvBlock(2 * dim, 2 * dim)
        self.up4 = nn.ConvTranspose2d(2 * dim, dim, 2, 2)
        self.fuse4 = nn.Sequential(ConvBlock(dim, dim), ConvBlock(dim, dim))
        self.out = nn.Conv2d(dim, config.mask_dim, 1)

    def forward(self, feature_map: Tensor, images: Tensor) -> Tensor:
        """``[N, D, H/16, W/16]`` map and ``[N, 3, H, W]`` images to ``[N, mask_dim, H/4, W/4]``."""
        stem4 = self.stem4(images)
        fused8 = self.fuse8(self.up8(feature_map) + self.stem8(stem4))
        return self.out(self.fuse4(self.up4(fused8) + stem4))


class SegmentationHead(nn.Module):
    """Dynamic-kernel instance segmentation on a stride-16 backbone."""

    def __init__(self, embed_dim: int, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = config
        self.mask_features = MaskFeatures(embed_dim, config)
        self.reduce = nn.Conv2d(embed_dim, config.hidden_dim, 1)
        self.class_tower = ConvBlock(config.hidden_dim, config.hidden_dim)
        self.kernel_tower = ConvBlock(config.hidden_dim, config.hidden_dim)
        self.classify = nn.Conv2d(config.hidden_dim, len(config.labels), 1)
        self.kernel = nn.Conv2d(config.hidden_dim, config.mask_dim + POSITION_TERMS, 1)
        assert self.classify.bias is not None
        assert self.kernel.bias is not None
        nn.init.constant_(self.classify.bias, -4.0)  # a token is an object's centre in about 2 % of cases
        nn.init.normal_(self.kernel.weight, std=0.01)
        nn.init.zeros_(self.kernel.bias)

    def forward(self, features: Tensor, images: Tensor) -> DenseOutput:
        """Predict scores, kernels and the mask basis.

        Args:
            features: ``[N, 1 + T, D]`` backbone output, CLS first.
            images: ``[N, 3, H, W]`` the normalised images the features were made from.
        """
        height, width = images.shape[-2] // TOKEN_STRIDE, images.shape[-1] // TOKEN_STRIDE
        feature_map = features[:, 1:].transpose(1, 2).reshape(features.shape[0], -1, height, width)
        hidden = F.gelu(self.reduce(feature_map))
        class_logits = self.classify(self.class_tower(hidden)).flatten(2).transpose(1, 2)
        kernels = self.kernel(self.kernel_tower(hidden)).flatten(2).transpose(1, 2)
        mask_features = self.mask_features(feature_map, images).float()
        coordinates = _coordinate_basis(mask_features.shape[-2], mask_features.shape[-1], mask_features)
        basis = torch.cat([mask_features, coordinates.expand(mask_features.shape[0], -1, -1, -1)], dim=1)
        centres = token_centres(height, width, mask_features)
        return DenseOutput(class_logits.float(), _shift_kernels(kernels.float(), centres), basis)

    def predict(self, features: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Best ``K`` tokens of each image, as one static graph.

        Returns:
            ``scores [N, K]`` probabilities in descending order, ``labels [N, K]`` int64, ``mask_logits [N, K, h, w]``
            at stride 4. Several tokens may describe one object; duplicates are for the caller to remove.
        """
        output = self(features, images)
        token_scores, token_labels = output.class_logits.sigmoid().max(dim=-1)
        keep = min(self.config.max_objects, token_scores.shape[1])
        scores, tokens = token_scores.topk(keep, dim=1)
        kernels = output.kernels.gather(1, tokens[..., None].expand(-1, -1, output.kernels.shape[-1]))
        count, _, height, width = output.basis.shape
        mask_logits = (kernels @ output.basis.flatten(2)).reshape(count, keep, height, width)
        return scores, token_labels.gather(1, tokens), mask_logits


def token_centres(height: int, width: int, like: Tensor) -> Tensor:
    """Centres of the tokens, ``[T, 2]`` as (x, y) in units of ``POSITION_UNIT`` pixels, row-major."""
    x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) * (TOKEN_STRIDE / POSITION_UNIT)
    y = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) * (TOKEN_STRIDE / POSITION_UNIT)
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1)


def _coordinate_basis(height: int, width: int, like: Tensor) -> Tensor:
    """Monomials 1, x, y, x^2, xy, y^2 of every stride-4 cell centre, ``[1, 6, h, w]``."""
    x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) * (MASK_STRIDE / POSITION_UNIT)
    y = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) * (MASK_STRIDE / POSITION_UNIT)
    x, y = x[None, :].expand(height, width), y[:, None].expand(height, width)
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])[None]


def _shift_kernels(kernels: Tensor, centres: Tensor) -> Tensor:
    """Rewrite each token's polynomial in coordinates relative to its centre as one in absolute coordinates.

    So that a mask is a single matrix product with a basis that all tokens share.
    """
    features, (one, x, y, xx, xy, yy) = (
        kernels[..., :-POSITION_TERMS],
        kernels[..., -POSITION_TERMS:].unbind(-1),
    )
    cx, cy = centres[:, 0], centres[:, 1]
    absolute = torch.stack(
        [
            one - x * cx - y * cy + xx * cx * cx + xy * cx * cy + yy * cy * cy,
            x - 2 * xx * cx - xy * cy,
            y - 2 * yy * cy - xy * cx,
            xx,
            xy,
            yy,
        ],
        dim=-1,
    )
    return torch.cat([features, absolute], dim=-1)
