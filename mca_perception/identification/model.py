"""Identification head: backbone tokens to a unit-length embedding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class IdentificationConfig:
    """Sizes of the head and of its input.

    Attributes:
        embedding_dim: width of the embedding.
        crop_size: side of the square crop in pixels, a multiple of the patch size.
        margin: fraction of context around the object's box.
        background: grey value of everything that is not the object.
    """

    embedding_dim: int = 128
    crop_size: int = 112
    margin: float = 0.1
    background: int = 127


class IdentificationHead(nn.Module):
    """Mean of the patch tokens, LayerNorm, linear projection, L2 normalisation (RoboLLM; spec armbench 4.1)."""

    def __init__(self, embed_dim: int, config: IdentificationConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)
        self.project = nn.Linear(embed_dim, config.embedding_dim, bias=False)
        nn.init.trunc_normal_(self.project.weight, std=embed_dim**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """``[N, 1 + T, D]`` backbone output, CLS first, to ``[N, E]`` float32 embeddings of length 1."""
        return F.normalize(self.project(self.norm(features[:, 1:].mean(dim=1))).float(), dim=-1)
