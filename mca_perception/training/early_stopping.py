"""Keep the best weights of a run by a validation metric, and stop when it no longer improves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mca_perception.errors import RecipeError
from mca_perception.training.recipe import BudgetSection
from mca_perception.training.schedule import trainable_parameters


@dataclass
class BestWeights:
    """The validated weights that scored best so far.

    Attributes:
        monitor: metric that decides, higher is better; None keeps nothing.
        patience: validations in a row without improvement after which training ends; None for no end.
        metrics: of the best validation.
        step: of the best validation.
        stale: validations since then.
        tensors: the best weights by parameter name, on the CPU.
    """

    monitor: str | None = None
    patience: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = -1
    stale: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, budget: BudgetSection) -> BestWeights:
        """What a recipe asks for, before the first validation."""
        return cls(budget.monitor, budget.patience)

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.stale >= self.patience

    def update(self, metrics: dict[str, float], model: nn.Module, step: int) -> None:
        """Compare a validation of ``model`` with the best; a figure that is not a number is no improvement.

        Raises:
            RecipeError: the validation has no metric of the monitored name.
        """
        if self.monitor is None:
            return
        if self.monitor not in metrics:
            raise RecipeError(
                f"budget.monitor {self.monitor!r} is no validation metric of this run; "
                f"it has: {', '.join(sorted(metrics))}"
            )
        if self.tensors and _comparable(metrics, self.monitor) <= _comparable(self.metrics, self.monitor):
            self.stale += 1
            return
        self.metrics, self.step, self.stale = dict(metrics), step, 0
        self.tensors = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in trainable_parameters(model).items()
        }

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Copy the best weights into ``model``; without any it stays as it is."""
        for name, tensor in self.tensors.items():
            model.get_parameter(name).copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: plain numbers and tensors."""
        return {name: getattr(self, name) for name in ("metrics", "step", "stale", "tensors")}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for name, value in content.items():
            setattr(self, name, value)


def _comparable(metrics: dict[str, float], name: str) -> float:
    value = metrics.get(name, math.nan)
    return -math.inf if math.isnan(value) else value
