"""BEiT-3: embeddings, position tables and the Multiway encoder, under the public parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mca_perception.backbone.blocks import (
    EXPERT_OF,
    SHARED,
    TEXT,
    VISION,
    EncoderLayer,
    Segments,
    layer_norm,
    route,
)
from mca_perception.backbone.config import BackboneConfig
from mca_perception.backbone.inputs import check_texts, image_grid
from mca_perception.backbone.protocol import Backbone, Normalisation
from mca_perception.backbone.windows import Windows
from mca_perception.errors import BackboneError

# Rows 0 and 1 of BEiT-3's position tables are unused (a padding convention of its code base).
UNUSED_POSITIONS = 2
HALF = (0.5, 0.5, 0.5)


class VisionEmbedding(nn.Module):
    """Patch projection with a CLS token in front."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.proj = nn.Conv2d(3, config.embed_dim, config.patch_size, config.patch_size)

    def forward(self, images: Tensor, masked_patches: Tensor | None = None) -> Tensor:
        """``[N, 3, H, W]`` images to ``[N, 1 + T, D]`` tokens, CLS first.

        Patches where ``masked_patches`` (``[N, T]`` bool) is True are replaced by the mask token.
        """
        patches = self.proj(images).flatten(2).transpose(1, 2)
        if masked_patches is not None:
            patches = torch.where(masked_patches.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)


def resize_patch_positions(
    patch_positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Resize the patch part of a position table, ``[h*w, D] -> [h2*w2, D]``, bicubic in float32."""
    grid = patch_positions.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=new_grid, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2)[0].to(patch_positions.dtype)


class Encoder(nn.Module):
    """Position tables, blocks and final LayerNorm."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        rows = {VISION: config.grid_size**2 + 1 + UNUSED_POSITIONS, TEXT: config.max_text_positions}
        experts = [EXPERT_OF[name] for name in config.modalities]
        self.embed_positions = nn.ModuleDict(
            {expert: nn.Embedding(rows[expert], config.embed_dim) for expert in experts}
        )
        self.layers = nn.ModuleList(EncoderLayer(config, number) for number in range(config.depth))
        norms = [SHARED] if config.attention == "shared" else experts
        self.layer_norm = (
            nn.ModuleDict({key: layer_norm(config) for key in norms}) if config.normalize_output else None
        )

    def _table(self, expert: str) -> Tensor:
        weight = self.embed_positions[expert].weight
        assert isinstance(weight, Tensor)
        return weight[UNUSED_POSITIONS:]

    def image_positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings ``[1 + h*w, D]`` for a grid of ``h x w`` patches, CLS first."""
        table, side = self._table(VISION), self.config.grid_size
        if grid == (side, side):
            return table
        return torch.cat([table[:1], resize_patch_positions(table[1:], (side, side), grid)])

    def text_positions(self, length: int) -> Tensor:
        """Position embeddings ``[length, D]`` of a text."""
        return self._table(TEXT)[:length]

    def forward(
        self, tokens: Tensor, segments: Segments, mask: Tensor | None = None, windows: Windows | None = None
    ) -> Tensor:
        """Run the blocks on ``[N, L, D]`` embedded tokens; arguments as in :class:`EncoderLayer`."""
        for number, layer in enumerate(self.layers):
            inside = None if self.config.attends_globally(number) else windows
            if self.config.gradient_checkpointing and self.training and torch.is_grad_enabled():
                tokens = checkpoint(layer, tokens, segments, mask, inside, use_reentrant=False)
            else:
                tokens = layer(tokens, segments, mask, inside)
        return tokens if self.layer_norm is None else route(self.layer_norm, tokens, segments)


class BEiT3(Backbone):
    """The Multiway Transformer of BEiT-3 ("RoboLLM" is its vision expert alone: 222 M -> 87 M parameters at base).

    Reads images, texts, or both as one fused sequence; a dual encoder is two calls.
    """

    normalisation = Normalisation(mean=HALF, std=HALF)  # BEiT-3's choice for all but ImageNet classification

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim, self.patch_size = config.embed_dim, config.patch_size
        self.img_size, self.modalities = config.img_size, config.modalities
        self.vision_embed = VisionEmbedding(config) if "vision" in config.modalities else None
        self.text_embed = (
            nn.Embedding(config.vocab_size, config.embed_dim) if "text" in config.modalities else None
        )
        self.encoder = Encoder(config)
        self.apply(_initialise)
        if self.vision_embed is not None:
            nn.init.trunc_normal_(self.vision_embed.cls_token, std=0.02)
            nn.init.trunc_normal_(self.vision_embed.mask_token, std=0.02)

    def forward(
        self,
        images: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_padding_mask: Tensor | None = None,
        *,
        masked_patches: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Encode images, texts, or pairs of both.

        Args:
            images: ``[N, 3, H, W]`` normalised RGB; H and W are multiples of the patch size.
            text_ids: ``[N, L]`` int64 of :class:`~mca_perception.backbone.tokenizer.BEiT3Tokenizer`.
            text_padding_mask: ``[N, L]`` bool, True at padding; None for texts of equal length.
            masked_patches: ``[N, T]`` bool, True where a patch is hidden (masked image modelling).

        Returns:
            ``encoder_out``: ``[N, L, D]`` states, image tokens first (CLS, then ``T = H/patch * W/patch`` patches in
            row-major order), then text tokens (``<s>`` first).

        Raises:
            BackboneError: no input, an input of the wrong shape, or one that the model has no expert for.
        """
        if images is None and text_ids is None:
            raise BackboneError("the backbone got no input: pass images, text_ids or both")
        parts: list[Tensor] = []
        segments: list[tuple[str, int]] = []
        windows = None
        if images is not None:
            grid = self._check_images(images)
            parts.append(self._embed_images(images, grid, masked_patches))
            windows = Windows.fit(grid, self.config.window_size) if self.config.window_size else None
            segments.append((VISION, parts[-1].shape[1]))
        if text_ids is not None:
            self._check_text(text_ids, text_padding_mask, images)
            parts.append(self._embed_text(text_ids, text_padding_mask))
            segments.append((TEXT, parts[-1].shape[1]))
        tokens = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        mask = _readable(text_padding_mask, tokens.shape[1])
        return {"encoder_out": self.encoder(tokens, tuple(segments), mask, windows)}

    def _embed_images(self, images: Tensor, grid: tuple[int, int], masked_patches: Tensor | None) -> Tensor:
        assert self.vision_embed is not None
        return self.vision_embed(images, masked_patches) + self.encoder.image_positions(grid)

    def _embed_text(self, text_ids: Tensor, padding_mask: Tensor | None) -> Tensor:
        assert self.text_embed is not None
        tokens = self.text_embed(text_ids) + self.encoder.text_positions(text_ids.shape[1])
        return tokens if padding_mask is None else tokens.masked_fill(padding_mask.unsqueeze(-1), 0.0)

    def _check_images(self, images: Tensor) -> tuple[int, int]:
        """The grid of patches as (rows, columns)."""
        if self.vision_embed is None:
            raise BackboneError(f"images given to a backbone of {self.modalities}: create it with 'vision'")
        return image_grid(images, self.patch_size)

    def _check_text(self, text_ids: Tensor, padding_mask: Tensor | None, images: Tensor | None) -> None:
        if self.text_embed is None:
            raise BackboneError(
                f"texts given to a backbone of {self.modalities}: create it with modalities=('vision', 'text')"
            )
        check_texts(text_ids, padding_mask, self.config.max_text_positions - UNUSED_POSITIONS)
        if images is not None and images.shape[0] != text_ids.shape[0]:
            raise BackboneError(f"{images.shape[0]} images do not pair with {text_ids.shape[0]} texts")
        if images is not None and self.config.window_size:
            raise BackboneError("window attention reads images alone: create the backbone with window_size=0")


def _readable(text_padding_mask: Tensor | None, length: int) -> Tensor | None:
    """``[N, 1, 1, L]`` bool, True where a token may be read; image tokens in front always may."""
    if text_padding_mask is None:
        return None
    readable = F.pad(~text_padding_mask, (length - text_padding_mask.shape[1], 0), value=True)
    return readable[:, None, None]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
