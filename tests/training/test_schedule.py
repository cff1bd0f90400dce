"""Learning rate, budget, parameter groups and the weight average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mca_perception.backbone import create_backbone
from mca_perception.training.recipe import BudgetSection, OptimiserSection
from mca_perception.training.schedule import WeightAverage, learning_rate, parameter_groups, progress

SETTINGS = OptimiserSection(lr=1.0, warmup_steps=10, flat_fraction=0.5, final_lr_fraction=0.1)


@pytest.mark.parametrize(
    ("step", "fraction", "expected"),
    [(0, 0.0, 0.1), (4, 0.01, 0.5), (100, 0.5, 1.0), (100, 0.75, 0.55), (100, 1.0, 0.1)],
)
def test_learning_rate(step: int, fraction: float, expected: float) -> None:
    assert learning_rate(step, fraction, SETTINGS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"max_steps": 100}, 0.5), ({"max_minutes": 100}, 0.2), ({"max_steps": 100, "max_minutes": 25}, 0.8)],
)
def test_progress_is_the_larger_fraction(limits: dict[str, float], expected: float) -> None:
    assert progress(50, 20.0, BudgetSection(**limits)) == pytest.approx(expected)


def test_only_matrices_decay() -> None:
    model = create_backbone("beit3_nano_patch16")
    decayed, plain = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.05
    assert plain["weight_decay"] == 0.0
    assert all(
        names[id(p)].endswith(("proj.A.weight", "fc1.weight", "fc2.weight", "proj.weight"))
        for p in decayed["params"]
    )
    assert {"vision_embed.cls_token", "encoder.embed_positions.A.weight"} <= {
        names[id(p)] for p in plain["params"]
    }


def test_frozen_parameters_stay_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    trained = {id(parameter) for parameter in model[1].parameters()}
    groups = parameter_groups(model, 0.05)
    assert {id(parameter) for group in groups for parameter in group["params"]} == trained  # type: ignore[attr-defined]
    average = WeightAverage(model, decay=0.5)
    assert set(average.tensors) == {"1.weight", "1.bias"}
    before = model[0].weight.clone()
    average.update(model, step=0)
    average.swap(model)
    assert torch.equal(model[0].weight, before)


def test_average_follows_and_swaps_back() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, decay=0.5)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1.0
    average.update(model, step=1000)
    average.swap(model)
    assert torch.allclose(model.weight, before + 0.5)
    average.swap(model)
    assert torch.allclose(model.weight, before + 1.0)
