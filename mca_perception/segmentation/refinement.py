"""Second look at the candidates of the edge head: judged together, each corrected by what its mask covers.

The features under a candidate's mask are averaged, which needs no RoIAlign, and change its kernel (the idea of K-Net);
an attention among the candidates that knows how far their masks contain each other tells parts from wholes. One static
graph of matrix products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 4
# Log-area, log-confidence of the mask and score logit of a candidate.
STATISTICS = 3


class Candidates(NamedTuple):
    """The best ``K`` candidates of ``N`` images, as their tokens see them.

    Attributes:
        score_logits: ``[N, K]``, descending.
        labels: ``[N, K]`` int64.
        hidden: ``[N, K, hidden_dim]`` what the kernels were made from.
        kernels: ``[N, K, kernel_dim]`` in absolute coordinates.
        mask_logits: ``[N, K, h, w]`` at stride 4.
    """

    score_logits: Tensor
    labels: Tensor
    hidden: Tensor
    kernels: Tensor
    mask_logits: Tensor


class Change(NamedTuple):
    """What the refinement says.

    Attributes:
        quality_logits: ``[N, K]``, the IoU expected of the corrected mask.
        kernels: ``[N, K, kernel_dim]`` to be added, in coordinates relative to the candidates' tokens.
    """

    quality_logits: Tensor
    kernels: Tensor


class Refined(NamedTuple):
    """Candidates after the refinement.

    Attributes:
        quality_logits: ``[N, K]``, the IoU expected of the mask.
        mask_logits: ``[N, K, h, w]`` at stride 4.
    """

    quality_logits: Tensor
    mask_logits: Tensor


class Refinement(nn.Module):
    """Mask pooling, one attention among candidates, one MLP.

    Args:
        hidden_dim: width of the token features.
        mask_dim: channels of the stride-4 mask features.
        kernel_dim: length of a kernel.
        dim: width of the refinement.
    """

    def __init__(self, hidden_dim: int, mask_dim: int, kernel_dim: int, dim: int) -> None:
        super().__init__()
        self.appearance_norm = nn.LayerNorm(2 * hidden_dim + mask_dim)
        self.appearance = nn.Linear(2 * hidden_dim + mask_dim, dim)
        self.statistics = nn.Linear(STATISTICS, dim)
        self.embed = nn.Sequential(nn.GELU(), nn.Linear(dim, dim))
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.containment = nn.Parameter(torch.zeros(HEADS, 2))
        self.out_proj = nn.Linear(dim, dim)
        self.ffn = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )
        self.norm = nn.LayerNorm(dim)
        self.quality = nn.Linear(dim, 1)
        # Before any training, the score times the squared mean probability inside the mask: it ranks better alone.
        self.confidence_weight = nn.Parameter(torch.tensor(2.0))
        self.kernel = nn.Linear(dim, kernel_dim)
        nn.init.zeros_(self.quality.weight)
        nn.init.zeros_(self.quality.bias)
        nn.init.zeros_(self.kernel.weight)
        nn.init.zeros_(self.kernel.bias)

    def forward(self, candidates: Candidates, hidden: Tensor, features: Tensor) -> Change:
        """Judge and correct candidates.

        Args:
            candidates: of ``N`` images.
            hidden: ``[N, T, hidden_dim]`` token features, row-major.
            features: ``[N, mask_dim, h, w]`` mask features at stride 4, four cells per token and axis.
        """
        masks = candidates.mask_logits.sigmoid()
        flat = masks.flatten(2)
        areas = flat.sum(2, keepdim=True) + 1
        under_mask = flat @ features.flatten(2).transpose(1, 2) / areas
        coarse = F.avg_pool2d(masks, 4).flatten(2)
        around = coarse @ hidden / (coarse.sum(2, keepdim=True) + 1 / 16)
        inside = (flat > 0.5).to(flat.dtype)
        confidence = (((flat * inside).sum(2) / (inside.sum(2) + 1)) + 1e-4).log()
        appearance = self.appearance(
            self.appearance_norm(torch.cat([candidates.hidden, around, under_mask], dim=2))
        )
        statistics = torch.stack([areas[..., 0].log() - 4, 4 * confidence, candidates.score_logits], dim=2)
        x = self.embed(appearance + self.statistics(statistics))
        contained = (flat @ flat.transpose(1, 2)) / areas  # [i, j]: the part of i that j covers
        x = x + self._attend(self.attention_norm(x), contained)
        x = self.norm(x + self.ffn(x))
        quality = candidates.score_logits + self.confidence_weight * confidence + self.quality(x)[..., 0]
        return Change(quality, self.kernel(x))

    def _attend(self, x: Tensor, contained: Tensor) -> Tensor:
        """Attention with a learned bias for "j covers i" and "i covers j" in each head."""
        count, length, dim = x.shape
        queries, keys, values = (
            self.qkv_proj(x).reshape(count, length, 3, HEADS, dim // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        )
        pairs = torch.stack([contained, contained.transpose(1, 2)], dim=-1)
        bias = (pairs @ self.containment.T).permute(0, 3, 1, 2)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        # Not transposed and viewed: the strides of the result differ between kernels, and an exported view does not.
        return self.out_proj(torch.cat(mixed.unbind(1), dim=2))
