"""What the training loop asks of a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mca_perception.backbone import Backbone


class Task(Protocol):
    """A head on the shared backbone, with its data and its losses.

    Attributes:
        name: key of the head in the model and in the logs.
        every: take part in every ``every``-th step.
        weight: factor on the summed losses.
        skipped: what the readers left out of each part of the data, by reason.
    """

    name: str
    every: int
    weight: float
    skipped: dict[str, Counter[str]]

    @property
    def head(self) -> nn.Module:
        """The trainable module, without the backbone."""
        ...

    def batches(self, seed: int) -> Iterable[Any]:
        """One pass over the training data in the order of ``seed``.

        A run in several processes shares it out, for which it has to be a :class:`~torch.utils.data.DataLoader`.
        """
        ...

    def losses(self, backbone: Backbone, batch: Any, device: torch.device) -> dict[str, Tensor]:
        """Named loss terms of one batch; their sum is minimised."""
        ...

    def validate(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        """Metrics on the validation split; higher is better."""
        ...
