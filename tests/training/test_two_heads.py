"""A second segmentation head on the frozen backbone of a run: trained, exported beside the first, chosen by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from mca_perception.cli.main import main
from mca_perception.datasets.images import read_rgb
from mca_perception.datasets.synth.tote_set import ToteSettings, write_totes
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.errors import RecipeError
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.training.bundling import add_head, bundle_run
from mca_perception.training.model import build
from mca_perception.training.recipe import load_recipe
from mca_perception.training.run import run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("training")]
RECIPE = """
name: tiny
backbone: {{name: beit3_nano_patch16, img_size: 64}}
segmentation:
  data: {data}
  labels: [Object, Tote]
  input_size: [64, 80]
  batch_size: 2
  workers: 0
  hidden_dim: 32
  pyramid_dim: 16
optimiser: {{warmup_steps: 1}}
budget: {{max_steps: 2}}
"""
ON_FROZEN_BACKBONE = ("segmentation.head=cascade", "backbone.freeze=true")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe beside a few synthesised totes."""
    folder = tmp_path_factory.mktemp("heads")
    (folder / "totes").mkdir()
    write_totes(ToteSettings(folder / "totes", 4, 3, products=12, split="train=0.5,val=0.5"), 1)
    (folder / "tiny.yaml").write_text(RECIPE.format(data=folder / "totes"))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def edge_run(recipe_file: Path) -> Path:
    """A finished run of the edge head."""
    run_recipe(load_recipe(recipe_file), recipe_file.parent / "edge")
    return recipe_file.parent / "edge"


@pytest.fixture(scope="module")
def edge_bundle(edge_run: Path) -> ModelBundle:
    """Its bundle."""
    return bundle_run(edge_run, edge_run.parent / "edge-bundle", version="0.0.1")


@pytest.fixture(scope="module")
def cascade_run(recipe_file: Path, edge_run: Path) -> Path:
    """A finished run of the cascade on the edge run's frozen backbone."""
    settings = [*ON_FROZEN_BACKBONE, f"init_from={edge_run}"]
    run_recipe(load_recipe(recipe_file, settings), recipe_file.parent / "cascade")
    return recipe_file.parent / "cascade"


@pytest.fixture(scope="module")
def both(edge_bundle: ModelBundle, cascade_run: Path) -> ModelBundle:
    """Both heads in one bundle, as the command line puts them there."""
    out = cascade_run.parent / "both"
    arguments = [str(edge_bundle.path), "--out", str(out), "--add-head", str(cascade_run)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mca", "export", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    return ModelBundle.open(out)


@pytest.fixture(scope="module")
def image(recipe_file: Path) -> NDArray[np.uint8]:
    """One of the totes."""
    return read_rgb(next((recipe_file.parent / "totes/mix-object-tote/images").glob("*.jpg")))


def test_only_the_backbone_is_taken_and_the_log_says_so(
    recipe_file: Path, edge_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = build(load_recipe(recipe_file, [*ON_FROZEN_BACKBONE, f"init_from={edge_run}"]))
    before, after = load_file(edge_run / "weights.safetensors"), model.state_dict()
    backbone = {key for key in before if key.startswith("backbone.")}
    assert backbone == before.keys() & after.keys()
    assert all(torch.equal(before[key], after[key]) for key in backbone)
    said = " ".join(capsys.readouterr().err.split())
    heads = len(after) - len(backbone)
    assert f"backbone {len(backbone)} of {len(backbone)}, heads.segmentation 0 of {heads}" in said


def test_bundle_holds_both_heads_on_one_backbone(
    both: ModelBundle, edge_bundle: ModelBundle, image: NDArray[np.uint8]
) -> None:
    manifest = both.manifest
    assert set(manifest.graphs) == {"backbone", "segmentation", "cascade"}
    assert [tensor.name for tensor in manifest.graphs["cascade"].inputs] == ["features", "score_threshold"]
    assert manifest.files.items() > edge_bundle.manifest.files.items()
    assert manifest.segmentation == edge_bundle.manifest.segmentation
    [cascade] = manifest.further_heads
    assert (cascade.head, cascade.labels) == ("cascade", ("Object", "Tote"))
    facts = cascade.model_extra or {}
    assert facts["training"]["export_difference"]["cascade"] < 1e-3
    assert {key.split(".")[0] for key in load_file(both.path / "cascade.safetensors")} == {"heads"}
    card = (both.path / "README.md").read_text()
    for head in ("edge", "cascade"):
        assert f"segmentation head ({head})" in card
        pipeline = PerceptionPipeline.from_bundle(both.path, head=head, score_threshold=0.0)
        assert pipeline.perceive(image).image_size == image.shape[:2]
        assert len(pipeline.candidates(image).scores) > 0


def test_cascade_alone_makes_a_bundle(cascade_run: Path, tmp_path: Path, image: NDArray[np.uint8]) -> None:
    bundle = bundle_run(cascade_run, tmp_path / "alone", version="0.0.1")
    assert set(bundle.manifest.graphs) == {"backbone", "cascade"}
    pipeline = PerceptionPipeline.from_bundle(bundle.path, score_threshold=0.0)
    assert pipeline.segmentation_settings.head == "cascade"
    assert len(pipeline.candidates(image).scores) > 0


def test_head_on_another_backbone_is_refused(
    recipe_file: Path, edge_bundle: ModelBundle, tmp_path: Path
) -> None:
    run_recipe(
        load_recipe(recipe_file, [*ON_FROZEN_BACKBONE, "budget.max_steps=1", "seed=5"]), tmp_path / "other"
    )
    with pytest.raises(RecipeError, match=r"another backbone .*backbone\.freeze=true"):
        add_head(edge_bundle, tmp_path / "other", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_head_that_the_bundle_has_is_refused(
    edge_bundle: ModelBundle, edge_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="no other segmentation head than the edge head"):
        add_head(edge_bundle, edge_run, tmp_path / "bundle")
