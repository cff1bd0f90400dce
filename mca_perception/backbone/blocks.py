"""Magneto ("sub-LN") transformer blocks of BEiT-3, with the public checkpoint's parameter names.

Every weight that BEiT-3 keeps once per modality lives under an expert key: ``A`` is vision. Block mathematics as in
the specification of the framework, section 2.2: pre-norm, sequential, LayerNorm eps 1e-5, exact GELU, an inner
LayerNorm before the attention's output projection and one between the activation and ``fc2``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-5
VISION = "A"


def layer_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm with BEiT-3's epsilon."""
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS)


def vision_expert(module: nn.Module) -> nn.ModuleDict:
    """Wrap a module as the vision expert, so that its parameters carry BEiT-3's ``.A.`` names."""
    return nn.ModuleDict({VISION: module})


class DropPath(nn.Module):
    """Stochastic depth: drop the residual branch of whole samples with probability ``rate`` while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Drop, or scale up, the ``[N, ...]`` residual branch."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = branch.new_empty((branch.shape[0],) + (1,) * (branch.ndim - 1)).bernoulli_(1.0 - self.rate)
        return branch * keep / (1.0 - self.rate)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention over ``[N, heads, L, head_dim]`` tensors.

    In reduced precision on a CPU, explicit matrix products are 1.3 times as fast for a whole training step as the
    fused kernel; everywhere else the fused kernel wins.
    """
    if query.device.type == "cpu" and (query.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")):
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


class MultiheadAttention(nn.Module):
    """Self-attention with separate q, k, v, out projections (all with bias) and BEiT-3's inner LayerNorm."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.k_proj = vision_expert(nn.Linear(dim, dim))
        self.v_proj = vision_expert(nn.Linear(dim, dim))
        self.q_proj = vision_expert(nn.Linear(dim, dim))
        self.out_proj = vision_expert(nn.Linear(dim, dim))
        self.inner_attn_ln = vision_expert(layer_norm(dim))

    def _split_heads(self, tokens: Tensor) -> Tensor:
        count, length, dim = tokens.shape
        return tokens.view(count, length, self.num_heads, dim // self.num_heads).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend among the ``[N, L, D]`` tokens of each sample."""
        query = self._split_heads(self.q_proj[VISION](tokens))
        key = self._split_heads(self.k_proj[VISION](tokens))
        value = self._split_heads(self.v_proj[VISION](tokens))
        attended = attend(query, key, value).transpose(1, 2).reshape(tokens.shape)
        return self.out_proj[VISION](self.inner_attn_ln[VISION](attended))


class FeedForward(nn.Module):
    """``fc2(LayerNorm(GELU(fc1(x))))``."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.ffn_layernorm = layer_norm(hidden_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform ``[N, L, D]`` tokens one by one."""
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(tokens))))


class EncoderLayer(nn.Module):
    """One pre-norm block. ``final_layer_norm`` is the LayerNorm in front of the FFN, despite its public name."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, drop_path: float) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(dim, num_heads)
        self.self_attn_layer_norm = vision_expert(layer_norm(dim))
        self.ffn = vision_expert(FeedForward(dim, ffn_dim))
        self.final_layer_norm = vision_expert(layer_norm(dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[N, L, D]`` tokens through attention and FFN, each with its residual."""
        tokens = tokens + self.drop_path(self.self_attn(self.self_attn_layer_norm[VISION](tokens)))
        return tokens + self.drop_path(self.ffn[VISION](self.final_layer_norm[VISION](tokens)))
