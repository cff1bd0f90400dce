"""Edge segmentation head: dynamic mask kernels on the plain encoder, one static graph without RoIAlign or NMS.

Every stride-16 token predicts, for each class, a score and the weights of a 1x1 convolution; applied to stride-4
mask features that convolution gives the mask of the object the token stands on (the idea of SOLOv2 and CondInst).
The stride-4 features come from a simple feature pyramid over the last map only, as ViTDet does, plus a light image
stem that leaves the backbone plain. The best candidates are then judged and corrected together, see
:mod:`mca_perception.segmentation.refinement`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.segmentation.refinement import Candidates, Refined, Refinement

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
        refinement_dim: width of the refinement.
        max_objects: candidates ``K`` that are refined.
    """

    labels: tuple[str, ...] = ("Object",)
    hidden_dim: int = 192
    pyramid_dim: int = 48
    mask_dim: int = 32
    refinement_dim: int = 128
    max_objects: int = 100


class DenseOutput(NamedTuple):
    """What the head says about every token of ``N`` images.

    Attributes:
        class_logits: ``[N, T, C]``.
        kernels: ``[N, T, C, mask_dim + POSITION_TERMS]``.
        basis: ``[N, mask_dim + POSITION_TERMS, h, w]`` mask features at stride 4, coordinates last.
        hidden: ``[N, T, hidden_dim]`` what the kernels are made from.
    """

    class_logits: Tensor
    kernels: Tensor
    basis: Tensor
    hidden: Tensor


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
        classes, kernel_dim = len(config.labels), config.mask_dim + POSITION_TERMS
        self.mask_features = MaskFeatures(embed_dim, config)
        self.reduce = nn.Conv2d(embed_dim, config.hidden_dim, 1)
        self.class_tower = ConvBlock(config.hidden_dim, config.hidden_dim)
        self.kernel_tower = ConvBlock(config.hidden_dim, config.hidden_dim)
        self.classify = nn.Conv2d(config.hidden_dim, classes, 1)
        self.kernel = nn.Conv2d(config.hidden_dim, classes * kernel_dim, 1)
        self.refinement = Refinement(config.hidden_dim, config.mask_dim, kernel_dim, config.refinement_dim)
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
        reduced = F.gelu(self.reduce(feature_map))
        class_logits = self.classify(self.class_tower(reduced)).flatten(2).transpose(1, 2)
        hidden = self.kernel_tower(reduced)
        kernels = self.kernel(hidden).flatten(2).transpose(1, 2)
        kernels = kernels.reshape(*kernels.shape[:2], len(self.config.labels), -1).float()
        mask_features = self.mask_features(feature_map, images).float()
        coordinates = _coordinate_basis(mask_features.shape[-2], mask_features.shape[-1], mask_features)
        basis = torch.cat([mask_features, coordinates.expand(mask_features.shape[0], -1, -1, -1)], dim=1)
        centres = token_centres(height, width, mask_features)[:, None]
        return DenseOutput(
            class_logits.float(),
            _shift_kernels(kernels, centres),
            basis,
            hidden.float().flatten(2).transpose(1, 2),
        )

    def refine(self, output: DenseOutput) -> tuple[Candidates, Refined]:
        """The best ``K`` candidates of each image as the tokens see them, and after the refinement.

        Computes in float32: kernels are polynomials in absolute coordinates.
        """
        classes = len(self.config.labels)
        logits = output.class_logits.flatten(1)
        best, places = logits.topk(min(self.config.max_objects, logits.shape[1]), dim=1)
        tokens, labels = places // classes, places % classes
        kernels = _pick(output.kernels.flatten(1, 2), places).detach()
        masks = _masks(kernels, output.basis)
        candidates = Candidates(best.detach(), labels, _pick(output.hidden, tokens), kernels, masks.detach())
        features = output.basis[:, :-POSITION_TERMS]
        change = self.refinement(candidates, output.hidden, features)
        height, width = (side * MASK_STRIDE // TOKEN_STRIDE for side in output.basis.shape[-2:])
        centres = token_centres(height, width, output.basis)[tokens]
        refined = kernels + _shift_kernels(change.kernels, centres)
        return candidates, Refined(change.quality_logits, _masks(refined, output.basis))

    def predict(self, features: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Best ``K`` candidates of each image, as one static graph.

        Returns:
            ``scores [N, K]`` probabilities in descending order, ``labels [N, K]`` int64, ``mask_logits [N, K, h, w]``
            at stride 4. Several candidates may describe one object; duplicates are for the caller to remove.
        """
        candidates, refined = self.refine(self(features, images))
        scores, order = refined.quality_logits.sigmoid().sort(dim=1, descending=True)
        count, _, height, width = refined.mask_logits.shape
        masks = _pick(refined.mask_logits.flatten(2), order).reshape(count, -1, height, width)
        return scores, candidates.labels.gather(1, order), masks


def _pick(rows: Tensor, places: Tensor) -> Tensor:
    """Rows ``[N, R, D]`` at ``places [N, K]``, as ``[N, K, D]``."""
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[-1]))


def _masks(kernels: Tensor, basis: Tensor) -> Tensor:
    """Mask logits ``[N, K, h, w]`` of kernels ``[N, K, D]`` over a basis ``[N, D, h, w]``."""
    return (kernels @ basis.flatten(2)).reshape(*kernels.shape[:2], *basis.shape[-2:])


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

    So that a mask is a single matrix product with a basis that all tokens share. ``kernels [..., D]``,
    ``centres [..., 2]``.
    """
    features, (one, x, y, xx, xy, yy) = (
        kernels[..., :-POSITION_TERMS],
        kernels[..., -POSITION_TERMS:].unbind(-1),
    )
    cx, cy = centres[..., 0], centres[..., 1]
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
