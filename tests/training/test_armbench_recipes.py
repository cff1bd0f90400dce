"""The ARMBench recipes: as published where something is, and two steps of each on a folder in the exact layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from mca_perception.datasets.synth.tote_set import ToteSettings, write_totes
from mca_perception.training.recipe import Recipe, load_recipe
from mca_perception.training.run import read_log, run_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NAMES = ("armbench_segmentation_base", "armbench_segmentation_base_edge")
TRAINING_IMAGES = 30_992
SMALL = [
    "backbone={name: beit3_nano_patch16, img_size: 64, drop_path_rate: 0.2, gradient_checkpointing: true}",
    "segmentation.input_size=[64, 80]",
    "segmentation.hidden_dim=32",
    "segmentation.pyramid_dim=16",
    "segmentation.cascade=nano",
    "segmentation.batch_size=1",
    "segmentation.workers=0",
    "segmentation.validation_images=2",
    "optimiser.accumulation_steps=2",
    "budget.validate_steps=1",
    "budget.max_steps=2",
]


def shipped(name: str, *overrides: str) -> Recipe:
    """A recipe of the repository."""
    return load_recipe(RECIPES / f"{name}.yaml", list(overrides))


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_the_published_ones(name: str) -> None:
    recipe = shipped(name)
    assert recipe.segmentation is not None
    assert recipe.backbone.name == "beit3_base_patch16"
    assert recipe.optimiser.lr == 2e-4
    assert recipe.segmentation.batch_size * recipe.optimiser.accumulation_steps == 64
    assert recipe.budget.validate_steps == TRAINING_IMAGES // 64  # once per epoch
    assert recipe.budget.max_steps == 50 * recipe.budget.validate_steps
    assert recipe.budget.patience == 5
    assert recipe.segmentation.validation_split == "val"


@pytest.fixture(scope="module")
def armbench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few synthesised scenes in the folders of the ARMBench segmentation set."""
    folder = tmp_path_factory.mktemp("data") / "armbench-segmentation-0.1"
    folder.mkdir()
    write_totes(ToteSettings(folder, 6, 3, products=12, split="train=0.67,val=0.33"), 1)
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("training")
@pytest.mark.parametrize("name", NAMES)
def test_dry_run(name: str, armbench: Path, tmp_path: Path) -> None:
    state = run_recipe(shipped(name, f"segmentation.data={armbench}", *SMALL), tmp_path)
    assert state.step == 2
    assert 0 <= state.metrics["segmentation/mask_map50"] <= 1
    assert read_log(tmp_path)[-1]["weights_of_step"] in (1, 2)
    assert all(value.isfinite().all() for value in load_file(tmp_path / "weights.safetensors").values())
