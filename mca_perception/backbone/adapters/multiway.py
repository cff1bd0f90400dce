"""MultiWay-Adapter modules: New Knowledge Extractor (NKE) and Alignment Enhancer (AE).

In a block with the state ``x'`` in front of its frozen feed-forward network ``FFN`` (specification of the adapter,
section 2.3, the resolved form of the thesis' Eqs. 6.1 and 6.2):

    h = x' + DropPath(FFN(LN2(x'))) + alpha * NKE(u)
    y = h  + DropPath(AE(h))

``u`` is ``LN2(x')``, an own LayerNorm of ``x'``, or ``x'``. Every frozen expert has its own NKE, the third (VL) expert
of a VLMo-style top block included: what replaces the modality's expert there also replaces its adapter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.backbone.adapters.config import MultiWayConfig
from mca_perception.backbone.blocks import SHARED, DropPath, Segments, route


class NewKnowledgeExtractor(nn.Module):
    """``alpha * up(ReLU(down(u)))``, parallel to the frozen feed-forward network (Eq. 6.1); zero at the start."""

    def __init__(self, dim: int, config: MultiWayConfig, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps) if config.nke_norm == "own" else None
        self.down = nn.Linear(dim, config.bottleneck)
        self.dropout = nn.Dropout(config.dropout)
        self.up = nn.Linear(config.bottleneck, dim)
        self.alpha: float | nn.Parameter = config.alpha
        if config.learnable_alpha:
            self.alpha = nn.Parameter(torch.tensor(config.alpha))
        # nn.Linear's own weights are Kaiming-uniform with a = sqrt(5), as asked for.
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """What to add to the ``[N, L, D]`` output of the frozen branch."""
        tokens = tokens if self.norm is None else self.norm(tokens)
        return self.alpha * self.up(self.dropout(F.relu(self.down(tokens))))


class AlignmentEnhancer(nn.Module):
    """A wider bottleneck on top of the block, in the released code's form or as the thesis' text has it."""

    def __init__(self, dim: int, config: MultiWayConfig, eps: float) -> None:
        super().__init__()
        hidden = config.enhancer_dim
        self.has_gelu = config.ae_form == "subln_gelu"
        has_norm = not self.has_gelu and config.nke_norm == "own"
        self.norm = nn.LayerNorm(dim, eps=eps) if has_norm else None
        self.fc1 = nn.Linear(dim, hidden)
        self.ffn_layernorm = nn.LayerNorm(hidden, eps=eps) if self.has_gelu else None
        self.dropout = nn.Dropout(0.0 if self.has_gelu else config.dropout)
        self.fc2 = nn.Linear(hidden, dim)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.bias)
        if config.zero_init_enhancer:
            nn.init.zeros_(self.fc2.weight)
        else:
            for layer in (self.fc1, self.fc2):
                nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.02, b=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """What to add to the ``[N, L, D]`` state."""
        hidden = self.fc1(tokens if self.norm is None else self.norm(tokens))
        hidden = F.gelu(hidden) if self.has_gelu else F.relu(hidden)
        hidden = hidden if self.ffn_layernorm is None else self.ffn_layernorm(hidden)
        return self.fc2(self.dropout(hidden))


class MultiWayAdapter(nn.Module):
    """The adapter of one block, called by :class:`~mca_perception.backbone.blocks.EncoderLayer`.

    Args:
        config: settings.
        experts: keys of the block's feed-forward experts; each has its own NKE.
        dim: width of a token.
        drop_path: rate of the host's block, taken over for the AE.
        eps: epsilon of LayerNorms, the host's.
    """

    def __init__(
        self, config: MultiWayConfig, experts: tuple[str, ...], dim: int, *, drop_path: float, eps: float
    ) -> None:
        super().__init__()
        self.config = config
        enhanced = (SHARED,) if config.ae_sharing == "shared" else experts
        self.nke = self.ae = None
        if config.bottleneck:
            self.nke = nn.ModuleDict({key: NewKnowledgeExtractor(dim, config, eps) for key in experts})
        if config.enhancer_dim:
            self.ae = nn.ModuleDict({key: AlignmentEnhancer(dim, config, eps) for key in enhanced})
        self.drop_path = DropPath(drop_path)

    def forward(self, residual: Tensor, normed: Tensor, hidden: Tensor, segments: Segments) -> Tensor:
        """The block's output ``[N, L, D]``.

        Args:
            residual: ``x'``, the state in front of the feed-forward network.
            normed: ``LN2(x')``, what that network read.
            hidden: ``x' + DropPath(FFN(LN2(x')))``.
            segments: which expert each run of tokens took.
        """
        if self.nke is not None:
            hidden = hidden + route(
                self.nke, normed if self.config.nke_norm == "host" else residual, segments
            )
        if self.ae is not None:
            hidden = hidden + self.drop_path(route(self.ae, hidden, segments))
        return hidden
