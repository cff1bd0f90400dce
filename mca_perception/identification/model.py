"""Identification heads: backbone tokens to a unit-length embedding, and what joins several of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.identification.fusion import ReferenceFusion, ViewFusion
from mca_perception.identification.losses import create_loss
from mca_perception.identification.recipe import IdentificationRecipe

# Hidden width of the fusion over that of the backbone: 3072 for Base, 4096 for Large, as published.
FUSION_EXPANSION = 4


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


class IdentificationModule(nn.Module):
    """Everything that identification trains on top of the backbone, with its loss.

    Attributes:
        head: embeds queries, and references too unless they have a head of their own.
        reference_head: embeds references; None where queries and references share one.
        fusion: joins the views of a pick; None with a single view.
        reference_fusion: joins the references of a product; None where each counts by itself.
        loss: of queries ``[B, E]``, references ``[B, E]`` and products ``[B]``.
    """

    def __init__(self, embed_dim: int, recipe: IdentificationRecipe, products: int) -> None:
        super().__init__()
        config = IdentificationConfig(recipe.embedding_dim, recipe.crop_size, recipe.margin)
        width = config.embedding_dim
        self.head = IdentificationHead(embed_dim, config)
        self.reference_head = IdentificationHead(embed_dim, config) if recipe.poolers == "separate" else None
        hidden = recipe.fusion_hidden or FUSION_EXPANSION * embed_dim
        self.fusion = ViewFusion(recipe.views, width, hidden) if recipe.views > 1 else None
        self.reference_fusion = (
            ReferenceFusion(width, recipe.reference_fusion) if recipe.reference_fusion else None
        )
        self.loss = create_loss(recipe, width, products)
        if recipe.trainable == "fusion":
            for part in (self.head, self.reference_head, self.reference_fusion):
                if part is not None:
                    part.requires_grad_(False)

    def forward(self, features: Tensor, *, references: bool = False) -> Tensor:
        """``[N, 1 + T, D]`` features of crops, of references if so said, to ``[N, E]`` embeddings."""
        own = self.reference_head if references else None
        return (self.head if own is None else own)(features)

    def fuse_views(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """``[N, V, E]`` and ``[N, V]`` bool to ``[N, E]``; the only view where there is no fusion."""
        return embeddings[:, 0] if self.fusion is None else self.fusion(embeddings, present)

    def fuse_references(self, embeddings: Tensor) -> Tensor:
        """``[N, R, E]`` to ``[N, E]``; the only reference where they are not fused."""
        if self.reference_fusion is None:
            return embeddings[:, 0]
        present = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        return self.reference_fusion(embeddings, present)
