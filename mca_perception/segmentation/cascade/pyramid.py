"""Feature maps of several strides: the interface detectors read, and the simple feature pyramid of ViTDet."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.errors import BackboneError

__all__ = ["PYRAMID_STRIDES", "ChannelNorm", "FeatureMaps", "SimpleFeaturePyramid", "tokens_to_map"]

TOKEN_STRIDE = 16
PYRAMID_STRIDES = (4, 8, 16, 32, 64)


class FeatureMaps(nn.Module):
    """Anything that turns images into maps; the base of what :class:`~.detector.CascadeDetector` works on.

    Attributes:
        strides: pixels per cell of each map, finest first, each twice the one before.
        channels: width of every map.
    """

    strides: tuple[int, ...]
    channels: int

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """``[N, 3, H, W]`` normalised images to maps ``[N, channels, H / stride, W / stride]``."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each cell of an ``[N, C, H, W]`` map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; the shape stays."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """Maps of strides 4, 8, 16, 32 and 64 from the backbone's last stride-16 map alone (ViTDet, section 3).

    Deconvolutions enlarge, max pooling reduces; a 1x1 and a 3x3 convolution, each with LayerNorm, bring every level
    to ``channels``. The coarsest level, for large proposals only, is every second cell of the one before.
    """

    strides = PYRAMID_STRIDES

    def __init__(self, embed_dim: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        half, quarter = embed_dim // 2, embed_dim // 4
        # Partial cells at the lower and right border count too when the number of tokens is odd.
        shrink = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(embed_dim, half, 2, 2),
                    ChannelNorm(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, 2),
                ),
                nn.ConvTranspose2d(embed_dim, half, 2, 2),
                nn.Identity(),
                shrink,
            ]
        )
        self.outputs = nn.ModuleList(
            _level_output(width, channels) for width in (quarter, half, embed_dim, embed_dim)
        )

    def forward(self, feature_map: Tensor) -> list[Tensor]:
        """``[N, embed_dim, h, w]`` to five maps ``[N, channels, 4h, 4w]`` ... ``[N, channels, h/4, w/4]``."""
        maps = [output(scale(feature_map)) for scale, output in zip(self.scales, self.outputs, strict=True)]
        return [*maps, F.max_pool2d(maps[-1], 1, 2)]


def _level_output(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False),
        ChannelNorm(outputs),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        ChannelNorm(outputs),
    )


def tokens_to_map(features: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Arrange the patches of a backbone's output on their grid.

    Args:
        features: ``[N, 1 + T, D]``, CLS first, patches row-major.
        image_size: ``(height, width)`` of the images.

    Returns:
        ``[N, D, height / 16, width / 16]``.

    Raises:
        BackboneError: the number of tokens is not that of 16-pixel patches.
    """
    height, width = image_size[0] // TOKEN_STRIDE, image_size[1] // TOKEN_STRIDE
    if features.shape[1] != 1 + height * width:
        raise BackboneError(
            f"{features.shape[1]} tokens are not CLS and the {TOKEN_STRIDE}-pixel patches of {image_size} images; "
            f"use a backbone with patch size {TOKEN_STRIDE} and sides that are multiples of it"
        )
    return features[:, 1:].transpose(1, 2).reshape(len(features), -1, height, width)
