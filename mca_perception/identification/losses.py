"""Symmetric InfoNCE between query and reference embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_TEMPERATURE = 0.07
MAX_SCALE = 100.0


class InfoNCE(nn.Module):
    """Symmetric InfoNCE with a learned temperature (CLIP's initial value and bound).

    Pairs of the same product elsewhere in the batch are taken out of the negatives: two photos of one product must
    not repel each other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_TEMPERATURE)))

    def forward(self, queries: Tensor, references: Tensor, products: Tensor) -> Tensor:
        """Mean loss of both directions.

        Args:
            queries: ``[B, E]`` unit length; row i matches row i of ``references``.
            references: ``[B, E]`` unit length.
            products: ``[B]`` int64 product of each row.
        """
        scale = self.logit_scale.exp().clamp(max=MAX_SCALE)
        logits = scale * queries.float() @ references.float().T
        same = products[:, None] == products[None, :]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
        target = torch.arange(len(queries), device=queries.device)
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
