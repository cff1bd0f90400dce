"""Classifiers on one modality, layer by layer as the thesis has them (specification, sections 3.1, 3.3 and 3.4).

Every head takes token states ``[N, L, D]`` with the summary of the whole input (CLS) first, and gives logits
``[N, C]``; the softmax is in the loss. ReLU follows every dense and convolution layer but the last.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mca_perception.errors import RecipeError

__all__ = ["HEADS", "ConvStack", "KimCnn", "create_head", "dense_1", "dense_3"]

CONV_STACK = ((100, 2), (150, 3), (200, 4))
"""Filters, and kernel size = pooling length, of each convolution."""
SHORTEST_SEQUENCE = 2 * 3 * 4
KIM_FILTERS = 300
KIM_WIDTHS = (1, 2, 3, 4)


class OnSummary(nn.Module):
    """Layers on the first state alone."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, states: Tensor) -> Tensor:
        """``[N, L, D]`` to ``[N, C]``."""
        return self.layers(states[:, 0])


def dense_1(width: int, classes: int, length: int = 1) -> nn.Module:
    """``DO|Dense(1)``: dropout 0.1, and the one dense layer is the classifier."""
    return OnSummary(nn.Dropout(0.1), nn.Linear(width, classes))


def dense_3(width: int, classes: int, length: int = 1) -> nn.Module:
    """``DO/Dense(3)``: dense 200, dropout 0.2, dense 100, dropout 0.02, dense 50, then the output layer."""
    return OnSummary(
        nn.Linear(width, 200),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(200, 100),
        nn.ReLU(),
        nn.Dropout(0.02),
        nn.Linear(100, 50),
        nn.ReLU(),
        nn.Linear(50, classes),
    )


def image_dense_1(width: int, classes: int, length: int = 1) -> nn.Module:
    """``Dense(1)`` of the image models: one dense layer in the place of the encoder's own classifier."""
    return OnSummary(nn.Linear(width, classes))


class ConvStack(nn.Module):
    """``Norm/Conv(3)|Dense``: convolutions 100, 150, 200 one after the other, batch norm between them, then dense.

    Kernel sizes and pooling lengths are 2, 3 and 4, with "same" padding, so that short sequences work too. No width is
    stated for the dense layer, which is taken to be the classifier, as in ``DO|Dense(1)``.
    """

    def __init__(self, width: int, classes: int, length: int) -> None:
        super().__init__()
        if length < SHORTEST_SEQUENCE:
            raise RecipeError(
                f"head conv_stack pools {SHORTEST_SEQUENCE} tokens to one, the encoder gives {length}: choose a longer "
                "max_length or another head"
            )
        layers: list[nn.Module] = []
        for number, (filters, size) in enumerate(CONV_STACK):
            if number:
                layers.append(nn.BatchNorm1d(width))
            layers += [nn.Conv1d(width, filters, size, padding="same"), nn.ReLU(), nn.MaxPool1d(size)]
            width, length = filters, length // size
        self.convolutions = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * length, classes)

    def forward(self, states: Tensor) -> Tensor:
        """``[N, L, D]`` to ``[N, C]``; L as given at construction."""
        return self.classifier(self.convolutions(states.transpose(1, 2)).flatten(1))


class KimCnn(nn.Module):
    """Four parallel convolutions of 300 filters, widths 1 to 4, maximum over time: the public baseline's text model."""

    def __init__(self, width: int, classes: int, length: int) -> None:
        super().__init__()
        if length < max(KIM_WIDTHS):
            raise RecipeError(f"head kim_cnn needs {max(KIM_WIDTHS)} tokens, the encoder gives {length}")
        self.branches = nn.ModuleList(nn.Conv1d(width, KIM_FILTERS, size) for size in KIM_WIDTHS)
        self.classifier = nn.Linear(KIM_FILTERS * len(KIM_WIDTHS), classes)

    def forward(self, states: Tensor) -> Tensor:
        """``[N, L, D]`` to ``[N, C]``."""
        sequence = states.transpose(1, 2)
        return self.classifier(torch.cat([branch(sequence).relu().amax(-1) for branch in self.branches], 1))


HEADS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "dense_1": dense_1,
    "dense_3": dense_3,
    "conv_stack": ConvStack,
    "kim_cnn": KimCnn,
    "image_dense_1": image_dense_1,
}


def create_head(name: str, width: int, classes: int, length: int) -> nn.Module:
    """Build a head.

    Args:
        name: key of :data:`HEADS`.
        width: of a state.
        classes: number of outputs.
        length: tokens in a sequence.

    Raises:
        RecipeError: the encoder gives too short a sequence for it.
    """
    return HEADS[name](width, classes, length)
