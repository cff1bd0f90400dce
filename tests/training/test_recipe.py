"""Recipes: every shipped one is valid, overrides work, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mca_perception.backbone.adapters import LoraConfig, MultiWayConfig
from mca_perception.crisis.recipe import is_linear_recipe
from mca_perception.errors import RecipeError
from mca_perception.training.recipe import load_recipe

RECIPES = [
    path
    for path in sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
    if not is_linear_recipe(path)  # it needs no torch, and has a loader of its own
]
MINIMAL = (
    "name: tiny\nbackbone: {name: beit3_nano_patch16}\nsegmentation: {data: x}\nbudget: {max_steps: 2}\n"
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_overrides_are_yaml(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(MINIMAL)
    recipe = load_recipe(
        tmp_path / "r.yaml", ["segmentation.input_size=[64, 96]", "optimiser.lr=1e-4", "seed=7"]
    )
    assert recipe.segmentation is not None
    assert recipe.segmentation.input_size == (64, 96)
    assert (recipe.optimiser.lr, recipe.seed) == (1e-4, 7)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], None),
        (["adapter=none"], None),
        (["adapter=multiway"], MultiWayConfig()),
        (["adapter=lora"], LoraConfig()),
        (
            ["adapter={kind: multiway, bottleneck: 32, blocks: [0, 1]}"],
            MultiWayConfig(bottleneck=32, blocks=(0, 1)),
        ),
        (["adapter.kind=lora", "adapter.rank=2"], LoraConfig(rank=2)),
    ],
)
def test_adapter_by_name_or_settings(tmp_path: Path, overrides: list[str], expected: object) -> None:
    (tmp_path / "r.yaml").write_text(MINIMAL)
    recipe = load_recipe(tmp_path / "r.yaml", overrides)
    assert recipe.adapter == expected
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (None, [], "does not exist"),
        ("- a\n- b\n", [], "not a YAML mapping"),
        ("name: [unclosed", [], "not valid YAML"),
        (MINIMAL, ["nonsense"], "not of the form"),
        (MINIMAL, ["name.deeper=1"], "not a section"),
        (MINIMAL, ["segmentation.batch=3"], "segmentation.batch: Extra inputs"),
        (MINIMAL, ["optimiser.lr=-1"], "optimiser.lr"),
        (MINIMAL, ["budget={}"], "max_steps, max_minutes"),
        (MINIMAL, ["segmentation=null"], "at least one task"),
        (MINIMAL, ["name=../escape"], "name"),
        (MINIMAL, ["precision=fp8"], "precision"),
        (MINIMAL, ["adapter=prompt"], "adapter: Input tag 'prompt'"),
        (MINIMAL, ["adapter.kind=multiway", "adapter.rank=3"], "adapter.multiway.rank: Extra inputs"),
        (MINIMAL, ["adapter={kind: lora, rank: 0}"], "adapter.lora.rank"),
        (
            MINIMAL,
            ["budget.monitor=segmentation/mask_map50", "segmentation.validation_split=test"],
            "on the test split",
        ),
        (MINIMAL, ["budget.patience=3"], "patience needs monitor"),
        (MINIMAL, ["segmentation.augmentation.scale=[2, 0.1]"], "smaller zoom comes first"),
        (MINIMAL, ["segmentation.augmentation.copy_paste=2"], "segmentation.augmentation.copy_paste"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str | None, overrides: list[str], message: str) -> None:
    path = tmp_path / "r.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, overrides)
