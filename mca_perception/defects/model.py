"""Defect head: backbone tokens of a crop to class logits, and the crops of one pick to one answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.datasets.armbench_defects import LABELS
from mca_perception.defects.clues import CLUES
from mca_perception.errors import RecipeError

_ABSENT = -1e4
_HEADS = 4
_STRONGEST = 4


@dataclass(frozen=True)
class DefectConfig:
    """Sizes of the head and how its crops are made.

    Attributes:
        hidden_dim: width of an image's evidence vector, which is also what picks are pooled from.
        queries: learned queries over the tokens of an image.
        blocks: small attention blocks in which the tokens compare themselves with each other; 0 leaves them out.
        token_dim: width of these blocks, a multiple of 4.
        dropout: on the evidence while training.
        crop_size: side of the square crop in pixels, a multiple of the patch size.
        margin: fraction of context around the object's box.
        background: grey value of everything that is not the object.
        masked: whether the surroundings are set to that grey.
        detail_dim: channels of the first layer of a small convolutional branch on the crop itself, a multiple of 8;
            0 leaves it out.
    """

    hidden_dim: int = 256
    queries: int = 4
    blocks: int = 0
    token_dim: int = 96
    dropout: float = 0.1
    crop_size: int = 112
    margin: float = 0.1
    background: int = 127
    masked: bool = True
    detail_dim: int = 0


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch normalisation, which costs nothing once trained, GELU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()
        )


class AttentionPool(nn.Module):
    """Learned queries attend over a set (Ilse et al. 2018 with several queries); its size may vary."""

    def __init__(self, dim: int, queries: int) -> None:
        super().__init__()
        self.scores = nn.Linear(dim, queries)

    def forward(self, members: Tensor, present: Tensor | None = None) -> Tensor:
        """Pool ``[N, M, D]`` (only where ``present`` ``[N, M]`` bool) to ``[N, queries * D]``."""
        scores = self.scores(members)
        if present is not None:
            scores = scores.masked_fill(~present[..., None], _ABSENT)
        return (scores.softmax(dim=1).transpose(1, 2) @ members).flatten(1)


class TokenBlock(nn.Module):
    """A pre-norm transformer block of four heads."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """``[N, T, D]`` to the same shape."""
        query, key, value = (
            part.reshape(part.shape[0], part.shape[1], _HEADS, -1).transpose(1, 2)
            for part in self.to_qkv(self.norm(tokens)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.project(attended)
        return tokens + self.mlp(tokens)


class Details(nn.Module):
    """Cells of 8 pixels that see the crop itself, by convolutions, and the backbone's patch that they lie in.

    Seams and tears are thinner than a patch, and a backbone that was trained for other things has no need of them.
    """

    def __init__(self, embed_dim: int, dim: int) -> None:
        super().__init__()
        self.out_dim = 4 * dim
        self.stem = nn.Sequential(
            ConvBlock(3, dim, stride=2),
            ConvBlock(dim, 2 * dim, stride=2),
            ConvBlock(2 * dim, 2 * dim),
            ConvBlock(2 * dim, 4 * dim, stride=2),
        )
        self.up = nn.ConvTranspose2d(embed_dim, 4 * dim, 2, 2)
        self.fuse = nn.Sequential(ConvBlock(4 * dim, 4 * dim), ConvBlock(4 * dim, 4 * dim))

    def forward(self, tokens: Tensor, images: Tensor) -> Tensor:
        """``[N, T, D]`` tokens, row by row, of ``[N, 3, H, W]`` crops to ``[N, 4 T, 4 * dim]``.

        Raises:
            RecipeError: the backbone's patches are not of 16 pixels, twice a cell.
        """
        cells = self.stem(images)
        height, width = cells.shape[2] // 2, cells.shape[3] // 2
        if tokens.shape[1] != height * width:
            raise RecipeError(
                f"detail_dim needs a backbone with patches of 16 pixels; this one makes {tokens.shape[1]} of a crop of "
                f"{images.shape[3]} x {images.shape[2]}; set detail_dim to 0 or choose another backbone"
            )
        patches = tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)
        return torch.as_tensor(self.fuse(cells + self.up(patches)).flatten(2).transpose(1, 2))


class ImageEvidence(nn.Module):
    """What one image tells, from the backbone's tokens and with a branch for :class:`Details` from its pixels.

    The published head is one linear layer on the crop's mean (specification of ARMBench, section 4.1). A tear or a
    flap covers few patches, so attention and the maximum over patches stand beside the mean here, and every patch, or
    with a branch for details every cell, is asked for the clues (:data:`.CLUES`) that it shows. Narrow transformer
    blocks, in which patches are compared with each other, may be added.
    """

    def __init__(self, embed_dim: int, config: DefectConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)
        self.pool = AttentionPool(embed_dim, config.queries)
        self.compare_dim = config.token_dim if config.blocks else 0
        if config.blocks:
            blocks = [TokenBlock(config.token_dim) for _ in range(config.blocks)]
            self.compare = nn.Sequential(nn.Linear(embed_dim, config.token_dim), *blocks)
        self.details = Details(embed_dim, config.detail_dim) if config.detail_dim else None
        cell_dim = self.details.out_dim if self.details else embed_dim
        self.to_clues = nn.Linear(cell_dim, len(CLUES))
        width = (config.queries + 2) * embed_dim + 2 * self.compare_dim + len(CLUES)
        width += 2 * cell_dim if self.details else 0
        self.project = nn.Sequential(
            nn.Linear(width, config.hidden_dim), nn.GELU(), nn.Dropout(config.dropout)
        )

    def forward(self, features: Tensor, images: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Look at single images.

        Args:
            features: ``[N, 1 + T, D]`` backbone output, CLS first.
            images: ``[N, 3, S, S]`` its input; needed with a branch for details.

        Returns:
            Evidence ``[N, H]`` float32, and logits ``[N, C, 2]`` of the clues in every cell of a square grid.
        """
        tokens = self.norm(features[:, 1:])
        cells = tokens
        pooled = [tokens.mean(dim=1), tokens.amax(dim=1), self.pool(tokens)]
        if self.details is not None:
            assert images is not None
            cells = self.details(tokens, images)
            pooled += [cells.mean(dim=1), cells.amax(dim=1)]
        clues = self.to_clues(cells)
        pooled.append(strongest(clues))
        if self.config.blocks:
            compared = self.compare(tokens)
            pooled += [compared.mean(dim=1), compared.amax(dim=1)]
        return self.project(torch.cat(pooled, dim=-1)).float(), clues


def strongest(clues: Tensor) -> Tensor:
    """Mean ``[N, C]`` of the four largest logits of each clue, of ``[N, cells, C]``."""
    return clues.topk(min(_STRONGEST, clues.shape[1]), dim=1).values.mean(dim=1)


class DefectHead(nn.Module):
    """Classes of single images from their evidence, and of picks from the evidence of all their images."""

    def __init__(self, embed_dim: int, config: DefectConfig) -> None:
        super().__init__()
        self.evidence = ImageEvidence(embed_dim, config)
        self.classify = nn.Linear(config.hidden_dim, len(LABELS))
        self.views = ViewHead(config)

    def forward(self, features: Tensor, images: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Judge single images; arguments as for :class:`ImageEvidence`.

        Returns:
            Logits ``[N, 3]`` and evidence ``[N, H]``, float32.
        """
        logits, evidence, _ = self.explain(features, images)
        return logits, evidence

    def explain(self, features: Tensor, images: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`forward`, with logits ``[N, C, 2]`` of the clues."""
        evidence, clues = self.evidence(features, images)
        return self.classify(evidence).float(), evidence, clues


class ViewHead(nn.Module):
    """One answer for a pick from the evidence of one or more images, in any order."""

    def __init__(self, config: DefectConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.norm = nn.LayerNorm(dim)
        self.pool = AttentionPool(dim, 2)
        self.classify = nn.Sequential(
            nn.Linear(3 * dim, dim), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(dim, len(LABELS))
        )

    def forward(self, evidence: Tensor, present: Tensor) -> Tensor:
        """Judge picks.

        Args:
            evidence: ``[P, V, H]`` of their images; what stands at absent ones does not matter.
            present: ``[P, V]`` bool, at least one per pick.

        Returns:
            Logits ``[P, 3]`` float32.
        """
        views = self.norm(evidence).masked_fill(~present[..., None], 0.0)
        largest = views.masked_fill(~present[..., None], _ABSENT).amax(dim=1)
        return self.classify(torch.cat([self.pool(views, present), largest], dim=-1)).float()
