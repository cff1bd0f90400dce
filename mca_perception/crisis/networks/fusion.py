"""Late fusion of text and image (specification, section 3.5), with a modality that may be missing.

A missing modality is a learned vector in the place of the encoder's, never an encoded blank; in training each modality
is dropped now and then, never all of a post, so that the vectors and the rest of the head learn to do without.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["ConvFusion", "DenseFusion", "MissingModalities"]

PROJECTED = 1200
MODALITY_DROPOUT = 0.15


class MissingModalities(nn.Module):
    """Puts a learned vector in the place of every modality that a post does not have.

    Args:
        widths: width of each modality's vector.
        dropout: in training, share of posts with all modalities that lose a given one.
    """

    def __init__(self, widths: Mapping[str, int], dropout: float = MODALITY_DROPOUT) -> None:
        super().__init__()
        # Ordered, since a ParameterDict sorts the keys of a plain mapping.
        self.absent = nn.ParameterDict(
            OrderedDict((name, torch.randn(width) * 0.02) for name, width in widths.items())
        )
        self.dropout = dropout

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> list[Tensor]:
        """Fill the gaps.

        Args:
            vectors: ``[N, D]`` by modality; rows of absent ones have no meaning.
            present: ``[N]`` bool by modality.

        Returns:
            ``[N, D]`` of each modality, in the order of construction.
        """
        if self.training and self.dropout:
            present = self._dropped(present)
        return [
            torch.where(present[name].unsqueeze(1), vectors[name], absent.to(vectors[name].dtype))
            for name, absent in self.absent.items()
        ]

    def _dropped(self, present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One draw per post decides which modality it loses, if any; posts that miss one already lose nothing."""
        names = list(self.absent)
        complete = torch.stack([present[name] for name in names]).all(0)
        draw = torch.rand(complete.shape, device=complete.device)
        lost = (draw / self.dropout).floor()
        return {name: present[name] & ~(complete & (lost == i)) for i, name in enumerate(names)}


class DenseFusion(nn.Module):
    """``Concat|Norm|DO|DO/Dense(2)``, the thesis' best model.

    Each modality: dense 1200, ReLU. Then concatenation, batch norm, dropout 0.4, dense 500, ReLU, dropout 0.2, dense
    100, ReLU, dropout 0.02, and the output layer.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.projections = _projections(widths)
        joined = PROJECTED * len(widths)
        self.features = nn.Sequential(
            nn.BatchNorm1d(joined),
            nn.Dropout(0.4),
            nn.Linear(joined, 500),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(500, 100),
            nn.ReLU(),
            nn.Dropout(0.02),
        )
        self.classifier = nn.Linear(100, classes)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """``[N, D]`` of each modality, text first, to logits ``[N, C]``."""
        return self.classifier(self.features(_joined(self.projections, vectors)))


class ConvFusion(nn.Module):
    """``Concat|Conv(3)|Dense``, a losing baseline: two convolutions of 500 and 100 filters over the joined vector.

    Read as in the specification: one channel, kernels of 3 with "same" padding, a maximum over pairs, then dense.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.projections = _projections(widths)
        self.features = nn.Sequential(
            nn.Conv1d(1, 500, 3, padding="same"),
            nn.ReLU(),
            nn.Conv1d(500, 100, 3, padding="same"),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(100 * (PROJECTED * len(widths) // 2), classes)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """``[N, D]`` of each modality, text first, to logits ``[N, C]``."""
        return self.classifier(self.features(_joined(self.projections, vectors).unsqueeze(1)))


FUSIONS: dict[str, type[DenseFusion] | type[ConvFusion]] = {"dense": DenseFusion, "conv": ConvFusion}


def _projections(widths: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(nn.Linear(width, PROJECTED), nn.ReLU()) for width in widths)


def _joined(projections: nn.ModuleList, vectors: Sequence[Tensor]) -> Tensor:
    return torch.cat([layer(vector) for layer, vector in zip(projections, vectors, strict=True)], 1)
