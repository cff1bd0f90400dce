"""The head of labelled-image training: encoder output, projection for the contrast, classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.classification.recipe import MethodRecipe


class EncoderOutput(nn.Module):
    """Mean of the patch tokens, the representation that is kept; CLCE contrasts it, a classifier reads it."""

    def forward(self, features: Tensor) -> Tensor:
        """``[N, 1 + T, D]`` backbone output, CLS first, to ``[N, D]``, of any length."""
        return features[:, 1:].mean(dim=1)


class UnitEncoderOutput(EncoderOutput):
    """The same with rows of length 1: the embedding of an exported bundle."""

    def forward(self, features: Tensor) -> Tensor:
        """``[N, 1 + T, D]`` to float32 ``[N, D]``."""
        return F.normalize(super().forward(features).float(), dim=-1)


class Classifier(nn.Linear):
    """A linear classifier, on rows as they are or on their directions times a learned scale.

    CLCE's contrast does not fix the length of the representation: where it stays short, a classifier that reads it as
    it is learns slowly (section 8, item 9).

    Attributes:
        scale: learned length of the rows, or None.
    """

    scale: nn.Parameter | None

    def __init__(self, embed_dim: int, classes: int, *, normalise_input: bool) -> None:
        super().__init__(embed_dim, classes)
        nn.init.trunc_normal_(self.weight, std=embed_dim**-0.5)
        nn.init.zeros_(self.bias)
        # The length of a row that a layer normalisation has just left.
        self.scale = nn.Parameter(torch.tensor(embed_dim**0.5)) if normalise_input else None

    def forward(self, rows: Tensor) -> Tensor:
        """``[N, D]`` to logits ``[N, C]``."""
        if self.scale is not None:
            rows = self.scale * F.normalize(rows.float(), dim=-1)
        return super().forward(rows)


class ClassificationHead(nn.Module):
    """What labelled-image training adds to a backbone.

    Attributes:
        encoder_output: backbone tokens to the representation.
        projection: two layers in front of the contrast (section 2.2: as wide as the representation, ReLU, then
            ``projection_dim``); None for methods that contrast the representation itself or nothing.
        classifier: linear, on the representation as it is unless the method normalises it.
        batches: how many batches the run has seen, which tells its stage; kept with the weights so that a run resumes
            where it was.
    """

    batches: Tensor

    def __init__(self, embed_dim: int, method: MethodRecipe, classes: int) -> None:
        super().__init__()
        self.encoder_output = EncoderOutput()
        self.projection = (
            nn.Sequential(
                nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, method.projection_dim)
            )
            if method.two_stages
            else None
        )
        self.classifier = Classifier(embed_dim, classes, normalise_input=method.normalise_head_input)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """``[N, 1 + T, D]`` to ``[N, D]``."""
        return self.encoder_output(features)
