"""The loop on a toy task: accumulated batches, the best weights, patience, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mca_perception.errors import RecipeError
from mca_perception.training.run import read_log
from tests.support.toy_task import toy_recipe, train_toy

MONITOR = {"monitor": "identification/recall@1", "validate_steps": 1, "max_steps": 6}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a run left."""
    return load_file(folder / "weights.safetensors")


def largest_difference(first: Path, second: Path) -> float:
    """Between the weights of two runs."""
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_accumulated_batches_equal_a_large_one(tmp_path: Path) -> None:
    train_toy(tmp_path / "large", toy_recipe(), 16)
    train_toy(tmp_path / "small", toy_recipe(optimiser={"accumulation_steps": 4}), 4)
    train_toy(tmp_path / "other", toy_recipe(), 4)
    assert largest_difference(tmp_path / "large", tmp_path / "small") < 1e-6
    assert largest_difference(tmp_path / "large", tmp_path / "other") > 1e-4


def test_best_average_is_the_result(tmp_path: Path) -> None:
    _, short = train_toy(tmp_path / "short", toy_recipe(budget={"max_steps": 2}), 8)
    model, state = train_toy(tmp_path / "long", toy_recipe(budget=MONITOR), 8, (0.1, 0.9, 0.3, 0.9, 0.2))
    assert (short.step, state.step) == (2, 6)
    assert state.metrics == {"identification/recall@1": 0.9}
    assert read_log(tmp_path / "long")[-1]["weights_of_step"] == 2
    # ema_decay 0 makes the average the weights themselves; both runs decay the rate along their own budget only later.
    assert largest_difference(tmp_path / "short", tmp_path / "long") < 2e-2
    stored = weights(tmp_path / "long")
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("scores", "steps", "best"),
    [
        ((0.5, 0.4, 0.4), 3, 1),
        ((0.1, 0.2, 0.1, 0.3, 0.3, 0.2), 6, 4),
        ((float("nan"), 0.1, float("nan"), float("nan")), 4, 2),
    ],
)
def test_patience_ends_a_run(tmp_path: Path, scores: tuple[float, ...], steps: int, best: int) -> None:
    recipe = toy_recipe(budget={**MONITOR, "patience": 2, "max_steps": 50})
    _, state = train_toy(tmp_path, recipe, 8, scores)
    assert state.step == steps
    assert read_log(tmp_path)[-1]["weights_of_step"] == best


def test_best_weights_and_patience_survive_a_resume(tmp_path: Path) -> None:
    long = toy_recipe(budget={**MONITOR, "patience": 4, "max_steps": 20}, optimiser={"flat_fraction": 1.0})
    first = long.model_copy(update={"budget": long.budget.model_copy(update={"max_steps": 3})})
    train_toy(tmp_path, first, 8, (0.1, 0.8, 0.3))
    best = weights(tmp_path)
    _, state = train_toy(tmp_path, long, 8, (0.4,), resume=True)
    assert state.step == 6  # one validation without improvement before, three after
    assert state.metrics == {"identification/recall@1": 0.8}
    after = weights(tmp_path)
    assert all(torch.equal(best[name], after[name]) for name in best)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"budget": {"patience": 2}}, "patience needs monitor"),
        ({"budget": {"monitor": "segmentation/mask_map50"}}, "names no task of this recipe"),
        ({"budget": {"monitor": "recall"}}, "budget.monitor"),
        ({"optimiser": {"layer_decay": 0}}, "layer_decay"),
        ({"optimiser": {"accumulation_steps": 0}}, "accumulation_steps"),
    ],
)
def test_settings_that_cannot_work_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_recipe(**sections)


def test_unknown_metric_is_named(tmp_path: Path) -> None:
    recipe = toy_recipe(budget={**MONITOR, "monitor": "identification/accuracy"})
    with pytest.raises(RecipeError, match=r"accuracy.*it has: identification/recall@1"):
        train_toy(tmp_path, recipe, 8)


def test_too_little_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="less data than one batch"):
        train_toy(tmp_path, toy_recipe(), 64)
