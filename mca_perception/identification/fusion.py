"""Several embeddings to one: the views of a pick, and the reference images of a product."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ViewFusion(nn.Module):
    """Views of a pick, concatenated, through two layers (RoboLLM; specification of ARMBench, section 4.1).

    Differs from the published one in two ways, for views that may be missing: a learned placeholder takes their place,
    and the network's output is added to the mean of those present. It starts at 0, so an untrained fusion is that mean
    and a frozen embedding cannot be worsened at the start.
    """

    def __init__(self, views: int, embedding_dim: int, hidden: int) -> None:
        super().__init__()
        self.placeholder = nn.Parameter(torch.zeros(views, embedding_dim))
        self.expand = nn.Linear(views * embedding_dim, hidden)
        self.reduce = nn.Linear(hidden, embedding_dim)
        nn.init.zeros_(self.reduce.weight)
        nn.init.zeros_(self.reduce.bias)

    def forward(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """Join views.

        Args:
            embeddings: ``[N, V, E]`` of unit length; any value where a view is missing.
            present: ``[N, V]`` bool, at least one per row.

        Returns:
            ``[N, E]`` of unit length.
        """
        there = present.unsqueeze(-1)
        filled = torch.where(there, embeddings, self.placeholder)
        total = torch.where(there, embeddings, torch.zeros_like(embeddings)).sum(dim=1)
        mean = total / present.sum(dim=1, keepdim=True).to(total.dtype)
        change = self.reduce(F.gelu(self.expand(filled.flatten(1))))
        return F.normalize((mean + change).float(), dim=-1)


class ReferenceFusion(nn.Module):
    """Reference images of a product to one embedding: their mean, or a mean weighted by learned attention."""

    def __init__(self, embedding_dim: int, kind: str) -> None:
        super().__init__()
        self.attention = nn.Linear(embedding_dim, 1) if kind == "attention" else None
        if self.attention is not None:
            nn.init.zeros_(self.attention.weight)
            nn.init.zeros_(self.attention.bias)

    def forward(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """``[N, R, E]`` of unit length and ``[N, R]`` bool, at least one per row, to ``[N, E]`` of unit length."""
        scores = (
            present.to(embeddings.dtype) * 0 if self.attention is None else self.attention(embeddings)[..., 0]
        )
        weights = scores.masked_fill(~present, float("-inf")).softmax(dim=1)
        # Rows of missing references may hold anything, but weigh nothing.
        return F.normalize((weights.unsqueeze(-1) * embeddings).sum(dim=1).float(), dim=-1)
