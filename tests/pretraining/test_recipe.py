"""What a pre-training recipe refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mca_perception.errors import RecipeError
from mca_perception.pretraining.recipe import Objectives
from mca_perception.training.recipe import load_recipe


@pytest.mark.parametrize(
    ("objectives", "modalities", "masked"),
    [
        ({"mim": 1}, ("vision",), ("mim",)),
        ({"mlm": 1}, ("text",), ("mlm",)),
        ({"mvlm": 1, "mlm": 0.25}, ("vision", "text"), ("mlm", "mvlm")),
        ({"itc": 1, "itm": 1}, ("vision", "text"), ()),
    ],
)
def test_objectives_say_what_they_read(
    objectives: dict[str, Any], modalities: tuple[str, ...], masked: tuple[str, ...]
) -> None:
    found = Objectives(**objectives)
    assert found.modalities == modalities
    assert found.masked == masked


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pretraining.objectives={}"], "at least one of itc"),
        (["pretraining.objectives={itm: 1}"], "give itc a positive weight"),
        (["pretraining.objectives={mlm: -1}"], "pretraining.objectives.mlm"),
        (["pretraining.objectives={mlm: 1}"], "beit3.spm"),
        (
            ["pretraining.objectives={mlm: 1}", "pretraining.tokenizer=t"],
            "needs text: add it to backbone.modalities",
        ),
        (["pretraining.trainable=text"], "needs text"),
        (["backbone.modalities=[text]"], "needs vision"),
        (["backbone.modalities=[sound]"], "backbone.modalities"),
        (["pretraining.masking.patches=1"], "pretraining.masking.patches"),
        (["pretraining.text_length=2"], "pretraining.text_length"),
        (["pretraining=null"], "name at least one task"),
    ],
)
def test_unfit_settings_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "{name: r, backbone: {name: b}, pretraining: {data: d, objectives: {mim: 1}}, budget: {max_steps: 1}}"
    )
    load_recipe(path)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, overrides)


@pytest.mark.parametrize("stage", ["1_images", "2_texts", "3_pairs"])
def test_published_recipes_load_and_follow_each_other(repository: Path, stage: str) -> None:
    recipe = load_recipe(repository / f"recipes/nano_pretraining_{stage}.yaml")
    assert recipe.pretraining is not None
    assert recipe.name == f"nano_pretraining_{stage}"
    expected = {
        "1_images": None,
        "2_texts": "nano_pretraining_1_images",
        "3_pairs": "nano_pretraining_2_texts",
    }[stage]
    assert (recipe.init_from and recipe.init_from.name) == expected
    assert recipe.pretraining.trainable == {"1_images": "vision", "2_texts": "text", "3_pairs": "all"}[stage]
