"""The BEiT-3 vision branch: patch embedding, position table and encoder, under the public parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.backbone.blocks import VISION, EncoderLayer, layer_norm, vision_expert
from mca_perception.backbone.config import BackboneConfig

# Rows 0 and 1 of BEiT-3's image position table are unused (a padding convention of its code base), row 2 is CLS.
UNUSED_POSITIONS = 2


class VisionEmbedding(nn.Module):
    """Patch projection with a CLS token in front."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.proj = nn.Conv2d(3, config.embed_dim, config.patch_size, config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """``[N, 3, H, W]`` images to ``[N, 1 + T, D]`` tokens, CLS first."""
        patches = self.proj(images).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)


def resize_patch_positions(
    patch_positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Resize the patch part of a position table, ``[h*w, D] -> [h2*w2, D]``, bicubic in float32."""
    grid = patch_positions.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=new_grid, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2)[0].to(patch_positions.dtype)


class Encoder(nn.Module):
    """Position table, blocks and final LayerNorm."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.grid_size = config.grid_size
        positions = config.grid_size**2 + 1 + UNUSED_POSITIONS
        self.embed_positions = vision_expert(nn.Embedding(positions, config.embed_dim))
        last = max(config.depth - 1, 1)
        rates = [config.drop_path_rate * layer / last for layer in range(config.depth)]
        self.layers = nn.ModuleList(
            EncoderLayer(config.embed_dim, config.num_heads, config.ffn_dim, rate) for rate in rates
        )
        self.layer_norm = vision_expert(layer_norm(config.embed_dim)) if config.normalize_output else None

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings ``[1 + h*w, D]`` for a grid of ``h x w`` patches, CLS first."""
        weight = self.embed_positions[VISION].weight
        assert isinstance(weight, Tensor)
        table = weight[UNUSED_POSITIONS:]
        if grid == (self.grid_size, self.grid_size):
            return table
        patches = resize_patch_positions(table[1:], (self.grid_size, self.grid_size), grid)
        return torch.cat([table[:1], patches])

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Add positions for ``grid`` = (rows, columns) and run the blocks."""
        tokens = tokens + self.positions(grid)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens if self.layer_norm is None else self.layer_norm[VISION](tokens)


class BEiT3(nn.Module):
    """BEiT-3 reduced to its vision expert ("RoboLLM": 222 M -> 87 M parameters at base)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_embed = VisionEmbedding(config)
        self.encoder = Encoder(config)
        self.apply(_initialise)
        nn.init.trunc_normal_(self.vision_embed.cls_token, std=0.02)
        nn.init.trunc_normal_(self.vision_embed.mask_token, std=0.02)

    @property
    def embed_dim(self) -> int:
        """Width ``D`` of a token."""
        return self.config.embed_dim

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch_size

    def forward_features(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: ``[N, 3, H, W]`` float32, normalised RGB; H and W are multiples of the patch size.

        Returns:
            ``[N, 1 + T, D]`` token states, CLS first, then ``T = H/patch * W/patch`` patches in row-major order.

        Raises:
            ValueError: the input is not ``[N, 3, H, W]`` or a side is no multiple of the patch size.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [N, 3, H, W], got shape {tuple(images.shape)}")
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"image size {height}x{width} is not a multiple of the patch size {self.patch_size}: resize or pad it"
            )
        grid = (height // self.patch_size, width // self.patch_size)
        return self.encoder(self.vision_embed(images), grid)

    def forward(self, images: Tensor) -> Tensor:
        """Same as :meth:`forward_features`."""
        return self.forward_features(images)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)


def normalise(images: Tensor, device: torch.device) -> Tensor:
    """uint8 ``[N, 3, H, W]`` to float32 in [-1, 1] (mean = std = 0.5, BEiT-3's choice for all but ImageNet)."""
    return images.to(device, non_blocking=True).float().div_(127.5).sub_(1.0)
