"""Multiway Transformer blocks (mixture of modality experts), with the public BEiT-3 checkpoint's parameter names.

A block holds one feed-forward network per modality and attends over the tokens of all modalities at once. Which expert
a token takes is fixed by its modality: a sequence is described by its *segments*, runs of tokens of one expert, e.g.
``(("A", 197), ("B", 64))`` for an image followed by a text. Block mathematics: specification of the framework,
section 2.2 (pre-norm, sequential, exact GELU, sub-LayerNorm).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.backbone.config import BackboneConfig
from mca_perception.backbone.windows import Windows

VISION, TEXT, FUSED, SHARED = "A", "B", "VL", "shared"
EXPERT_OF = {"vision": VISION, "text": TEXT}

Segments = tuple[tuple[str, int], ...]


def layer_norm(config: BackboneConfig, dim: int | None = None) -> nn.LayerNorm:
    """LayerNorm with the configuration's epsilon."""
    return nn.LayerNorm(dim or config.embed_dim, eps=config.layer_norm_eps)


def route(experts: nn.ModuleDict, tokens: Tensor, segments: Segments) -> Tensor:
    """Send each segment of ``[N, L, D]`` tokens through its expert.

    A table with the single key ``shared`` serves all segments at once.
    """
    if SHARED in experts:
        return experts[SHARED](tokens)
    if len(segments) == 1:
        return experts[segments[0][0]](tokens)
    # Contiguous, because for strided input torch's product depends on which weights are frozen: results would, too.
    parts = [part.contiguous() for part in torch.split(tokens, [length for _, length in segments], dim=1)]
    return torch.cat([experts[key](part) for (key, _), part in zip(segments, parts, strict=True)], dim=1)


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


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention over ``[N, heads, L, head_dim]`` tensors; ``mask`` is True where a key may be read.

    In reduced precision on a CPU, explicit matrix products are 1.3 times as fast for a whole training step as the
    fused kernel; everywhere else the fused kernel wins.
    """
    if query.device.type == "cpu" and (query.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")):
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class MultiheadAttention(nn.Module):
    """Self-attention over all tokens, its weights per modality or shared by them.

    Queries, keys and values come from one matrix product; checkpoints hold the three under the public names
    ``q_proj``, ``k_proj`` and ``v_proj``.
    """

    def __init__(self, config: BackboneConfig, experts: tuple[str, ...]) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.qkv_proj = nn.ModuleDict({expert: nn.Linear(dim, 3 * dim) for expert in experts})
        self.out_proj = nn.ModuleDict({expert: nn.Linear(dim, dim) for expert in experts})
        self.inner_attn_ln = (
            nn.ModuleDict({expert: layer_norm(config) for expert in experts})
            if config.sub_layernorm
            else None
        )
        self.register_state_dict_post_hook(_split_projections)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_join_projections)  # type: ignore[no-untyped-call]

    def forward(self, tokens: Tensor, segments: Segments, mask: Tensor | None = None) -> Tensor:
        """Attend among the ``[N, L, D]`` tokens of each sample.

        Args:
            tokens: normalised states.
            segments: which expert's weights each run of tokens takes.
            mask: ``[N, 1, 1, L]`` bool, True where a token may be read; None for all.
        """
        count, length, dim = tokens.shape
        projected = route(self.qkv_proj, tokens, segments)
        heads = projected.view(count, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        attended = attend(query, key, value, mask).transpose(1, 2).reshape(tokens.shape)
        if self.inner_attn_ln is not None:
            attended = route(self.inner_attn_ln, attended, segments)
        return route(self.out_proj, attended, segments)


def _split_projections(
    attention: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: dict[str, object]
) -> None:
    """Store the joint projection under the three public names; a LoRA update of it stays joint."""
    joint = [name for name in state if name.startswith(f"{prefix}qkv_proj.") and ".lora_" not in name]
    for name in joint:
        for letter, part in zip("qkv", state.pop(name).chunk(3), strict=True):
            state[name.replace("qkv_proj", f"{letter}_proj")] = part


def _join_projections(attention: nn.Module, state: dict[str, Tensor], prefix: str, *_report: object) -> None:
    """Load the joint projection from the three public names; one that is absent keeps its values."""
    for name, parameter in attention.named_parameters():
        if not name.startswith("qkv_proj.") or ".lora_" in name:
            continue
        names = [prefix + name.replace("qkv_proj", f"{letter}_proj") for letter in "qkv"]
        if any(public in state for public in names):
            parts = zip(names, parameter.detach().chunk(3), strict=True)
            state[prefix + name] = torch.cat([state.pop(public, part) for public, part in parts])


class FeedForward(nn.Module):
    """``fc2(LayerNorm(GELU(fc1(x))))``, the LayerNorm being BEiT-3's sub-LayerNorm."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.embed_dim)
        self.ffn_layernorm = layer_norm(config, config.ffn_dim) if config.sub_layernorm else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform ``[N, L, D]`` tokens one by one."""
        hidden = F.gelu(self.fc1(tokens))
        return self.fc2(hidden if self.ffn_layernorm is None else self.ffn_layernorm(hidden))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))

    def forward(self, branch: Tensor) -> Tensor:
        """Scale ``[..., D]``."""
        return branch * self.gamma


class EncoderLayer(nn.Module):
    """One block. ``final_layer_norm`` is the LayerNorm in front of the FFN, despite its public name.

    Attributes:
        experts: keys of the feed-forward experts that the block owns.
        adapters: adapter modules by name; see :mod:`mca_perception.backbone.adapters`.
        active_adapter: the adapter in use, or None for the plain block.
    """

    def __init__(self, config: BackboneConfig, number: int) -> None:
        super().__init__()
        modality_experts = tuple(EXPERT_OF[name] for name in config.modalities)
        has_fused_expert = number >= config.depth - config.vl_experts
        self.experts = (*modality_experts, FUSED) if has_fused_expert else modality_experts
        attention_experts = (SHARED,) if config.attention == "shared" else modality_experts
        self.self_attn = MultiheadAttention(config, attention_experts)
        self.self_attn_layer_norm = nn.ModuleDict({key: layer_norm(config) for key in attention_experts})
        self.ffn = nn.ModuleDict({key: FeedForward(config) for key in self.experts})
        self.final_layer_norm = nn.ModuleDict({key: layer_norm(config) for key in self.experts})
        self.drop_path = DropPath(config.drop_path_rate * number / max(config.depth - 1, 1))
        scale = config.layer_scale
        self.attention_scale = nn.Identity() if scale is None else LayerScale(config.embed_dim, scale)
        self.ffn_scale = nn.Identity() if scale is None else LayerScale(config.embed_dim, scale)
        self.adapters = nn.ModuleDict()
        self.active_adapter: str | None = None

    def _ffn_segments(self, segments: Segments) -> Segments:
        if len(segments) > 1 and FUSED in self.ffn:
            return ((FUSED, sum(length for _, length in segments)),)
        return segments

    def forward(
        self,
        tokens: Tensor,
        segments: Segments,
        mask: Tensor | None = None,
        windows: Windows | None = None,
    ) -> Tensor:
        """``[N, L, D]`` tokens through attention and FFN, each with its residual.

        Args:
            tokens: states of all segments in one sequence.
            segments: the experts of the sequence.
            mask: ``[N, 1, 1, L]`` bool, True where a token may be read; None for all.
            windows: attend inside these windows; None attends globally.
        """
        normed = route(self.self_attn_layer_norm, tokens, segments)
        if windows is None:
            attended = self.self_attn(normed, segments, mask)
        else:
            split = windows.split(normed)
            inner = ((segments[0][0], split.shape[1]),)
            attended = windows.join(self.self_attn(split, inner, windows.mask(normed)))
        residual = tokens + self.drop_path(self.attention_scale(attended))
        segments = self._ffn_segments(segments)
        normed = route(self.final_layer_norm, residual, segments)
        hidden = residual + self.drop_path(self.ffn_scale(route(self.ffn, normed, segments)))
        if self.active_adapter is None:
            return hidden
        return self.adapters[self.active_adapter](residual, normed, hidden, segments)
