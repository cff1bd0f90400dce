"""The three stages through `mca train`: freezing, hand-over of weights, resuming, export, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from mca_perception.backbone.config import CONFIGS
from mca_perception.cli.main import app
from mca_perception.errors import RecipeError
from mca_perception.training.bundling import bundle_run
from mca_perception.training.model import build
from mca_perception.training.recipe import load_recipe
from mca_perception.training.run import read_log, run_recipe
from tests.support.pretraining import TINY, write_pairs, write_tokenizer

pytestmark = pytest.mark.xdist_group("pretraining")
pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
STAGES = {
    "images": "{mim: 1.0}, trainable: vision",
    "texts": "{mlm: 1.0}, trainable: text",
    "pairs": "{itc: 1.0, mvlm: 0.5, itm: 0.5}",
}
RECIPE = """
name: {stage}
init_from: {init_from}
backbone: {{name: beit3_tiny, img_size: 32, modalities: {modalities}}}
pretraining:
  data: {folder}/pairs
  validation_split: test
  tokenizer: {folder}/tiny.spm
  image_size: 32
  visual_codes: 20
  batch_size: 3
  workers: 0
  objectives: {objectives}
optimiser: {{warmup_steps: 1}}
budget: {{max_steps: 2}}
"""


def write_recipe(folder: Path, stage: str, init_from: Path | None) -> Path:
    path = folder / f"{stage}.yaml"
    modalities = "[vision]" if stage == "images" else "[vision, text]"
    objectives = STAGES[stage].replace(", trainable", "\n  trainable")
    path.write_text(
        RECIPE.format(
            stage=stage,
            folder=folder,
            objectives=objectives,
            modalities=modalities,
            init_from=init_from or "null",
        )
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, tokenizer, and the finished runs `images`, `texts` and `pairs`, each starting from the one before."""
    folder = tmp_path_factory.mktemp("pretraining")
    write_pairs(folder / "pairs", held_out=3)
    write_tokenizer(folder / "tiny.spm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "beit3_tiny", replace(TINY, modalities=("vision",)))
        before = None
        for stage in STAGES:
            out = folder / stage
            result = CliRunner().invoke(
                app,
                ["train", str(write_recipe(folder, stage, before)), "--out", str(out)],
                catch_exceptions=False,
            )
            assert result.exit_code == 0, result.output
            before = out
        yield folder


def weights(folder: Path, stage: str) -> dict[str, Tensor]:
    return load_file(folder / stage / "weights.safetensors")


def test_every_objective_is_logged_beside_its_baseline(folder: Path) -> None:
    final = {stage: read_log(folder / stage)[-1] for stage in STAGES}
    accuracies = {"images": ["mim"], "texts": ["mlm"], "pairs": ["mvlm_text", "mvlm_image", "itm"]}
    for stage, names in accuracies.items():
        for name in names:
            for figure in ("accuracy", "majority"):
                assert 0 <= final[stage][f"pretraining/{name}_{figure}"] <= 1
    assert final["pairs"]["pretraining/itm_majority"] == pytest.approx(2 / 3, abs=1e-3)
    assert final["pairs"]["pretraining/tr_chance@1"] == pytest.approx(1 / 3, abs=1e-3)
    assert {"pretraining/ir@1", "pretraining/tr@1"} <= set(final["pairs"])


def test_second_stage_leaves_the_vision_expert_bit_identical(folder: Path) -> None:
    first, second = weights(folder, "images"), weights(folder, "texts")
    shared = [name for name in first if name.startswith("backbone.")]
    assert len(shared) > 30
    assert all(torch.equal(first[name], second[name]) for name in shared)
    assert torch.equal(
        first["heads.pretraining.mim_head.weight"], second["heads.pretraining.mim_head.weight"]
    )


def test_second_stage_trains_the_language_expert(folder: Path) -> None:
    recipe = load_recipe(folder / "texts.yaml")
    model, _ = build(recipe)
    trains = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert trains
    assert all(".B." in name or name == "text_embed.weight" for name in trains)
    trained = weights(folder, "texts")["backbone.encoder.layers.0.ffn.B.ffn_layernorm.weight"]
    assert not torch.equal(trained, torch.ones_like(trained))


def test_third_stage_trains_everything(folder: Path) -> None:
    second, third = weights(folder, "texts"), weights(folder, "pairs")
    assert set(second) == set(third)
    assert not [name for name in third if torch.equal(second[name], third[name])]


def test_vision_run_takes_the_vision_expert(folder: Path) -> None:
    recipe = load_recipe(folder / "images.yaml", [f"init_from={folder / 'pairs'}"])
    model, _ = build(recipe)
    stored = weights(folder, "pairs")
    state = model.backbone.state_dict()
    assert state
    assert all(torch.equal(tensor, stored[f"backbone.{name}"]) for name, tensor in state.items())


def test_run_resumes(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(folder / "pairs.yaml")
    run_recipe(recipe, tmp_path / "run")
    longer = load_recipe(folder / "pairs.yaml", ["budget.max_steps=3"])
    assert run_recipe(longer, tmp_path / "run", resume=True).step == 3


def test_two_stage_fine_tuning_keeps_the_backbone(folder: Path, tmp_path: Path) -> None:
    """Frozen embeddings, a head alone: only the projections and the temperature change."""
    settings = ["backbone.freeze=true", "pretraining.objectives={itc: 1.0}", f"init_from={folder / 'pairs'}"]
    run_recipe(load_recipe(folder / "pairs.yaml", settings), tmp_path / "run")
    before, after = weights(folder, "pairs"), load_file(tmp_path / "run" / "weights.safetensors")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {
        f"heads.pretraining.{name}" for name in ("vision_head.weight", "language_head.weight", "logit_scale")
    }


@pytest.mark.slow
def test_export_writes_the_backbone_alone(folder: Path, tmp_path: Path) -> None:
    bundle = bundle_run(folder / "pairs", tmp_path / "bundle", version="0.0.1")
    assert set(bundle.manifest.graphs) == {"backbone"}
    stored = load_file(bundle.path / "weights.safetensors")
    assert stored
    assert all(name.startswith("backbone.") for name in stored)


def test_unfit_image_size_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="not a multiple of the patch size 16"):
        build(load_recipe(folder / "images.yaml", ["pretraining.image_size=40"]))


def test_text_only_run_has_no_bundle(folder: Path, tmp_path: Path) -> None:
    settings = ["backbone.modalities=[text]", "init_from=null", "pretraining.trainable=all"]
    run_recipe(load_recipe(folder / "texts.yaml", settings), tmp_path / "run")
    with pytest.raises(RecipeError, match="without vision"):
        bundle_run(tmp_path / "run", tmp_path / "bundle", version="0.0.1")


def test_tokenizer_larger_than_the_vocabulary_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "beit3_tiny", replace(TINY, vocab_size=20))
    with pytest.raises(RecipeError, match="word embeddings"):
        build(load_recipe(folder / "texts.yaml", ["init_from=null"]))
