"""A training run from end to end on a few synthesised scenes: train, stop, resume, export, perceive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mca_perception.datasets.synth.pick_set import PickSettings, write_picks
from mca_perception.datasets.synth.tote_set import ToteSettings, write_totes
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.card import attach_metrics
from mca_perception.errors import BundleError, RecipeError
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.training.bundling import bundle_run
from mca_perception.training.recipe import load_recipe
from mca_perception.training.run import load_run, read_log, run_recipe

pytestmark = pytest.mark.xdist_group("training")
RECIPE = """
name: tiny
backbone: {{name: beit3_nano_patch16, img_size: 64}}
segmentation:
  data: {data}/totes
  input_size: [64, 80]
  batch_size: 2
  workers: 0
  hidden_dim: 32
  pyramid_dim: 16
identification: {{data: {data}/picks, crop_size: 48, batch_size: 4, workers: 0, every: 2}}
optimiser: {{warmup_steps: 2}}
budget: {{max_steps: 4}}
"""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe beside a few synthesised totes and picks."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "totes").mkdir()
    (folder / "picks").mkdir()
    write_totes(ToteSettings(folder / "totes", 6, 3, products=12, split="train=0.5,val=0.5"), 1)
    write_picks(PickSettings(folder / "picks", 16, 4, 20, None, None, 0.0), 1)
    (folder / "tiny.yaml").write_text(RECIPE.format(data=folder))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def run(recipe_file: Path) -> Path:
    """A finished run of four steps."""
    out = recipe_file.parent / "run"
    run_recipe(load_recipe(recipe_file), out)
    return out


def test_run_leaves_log_weights_and_curves(run: Path) -> None:
    final = read_log(run)[-1]
    assert final["step"] == 4
    assert "threads" in final["device"]
    assert 0 <= final["identification/recall@1"] <= 1
    assert 0 <= final["segmentation/mask_map50"] <= 1
    assert all(
        (run / name).stat().st_size > 1000 for name in ("weights.safetensors", "curves.png", "state.pt")
    )


def test_a_run_is_not_overwritten(run: Path, recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match="--resume"):
        run_recipe(load_recipe(recipe_file), run)


def test_init_from_starts_at_the_other_run(run: Path, recipe_file: Path) -> None:
    overrides = [f"init_from={run}", "segmentation=null", "budget.max_steps=1", "optimiser.lr=1e-12"]
    out = recipe_file.parent / "second"
    run_recipe(load_recipe(recipe_file, overrides), out)
    first, second = (load_run(folder)[1].backbone.state_dict() for folder in (run, out))
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_stopped_run_resumes_where_it_was(recipe_file: Path) -> None:
    """SIGTERM in the middle: the step is finished, the state saved, and --resume completes the budget."""
    out = recipe_file.parent / "stopped"
    command = [sys.executable, "-m", "mca_perception.cli.main", "train", str(recipe_file), "--out", str(out)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--max-steps", "100000"], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    for line in process.stderr:  # the first log line comes after 50 steps
        if line.startswith("step 50 "):
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=60)
    assert process.returncode != 0
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["step"] >= 50
    recipe = load_recipe(recipe_file, [f"budget.max_steps={state['step'] + 2}"])
    assert run_recipe(recipe, out, resume=True).step == state["step"] + 2


def test_export_gives_a_bundle_that_perceives(run: Path, recipe_file: Path) -> None:
    bundle = bundle_run(run, recipe_file.parent / "bundle", version="0.0.1")
    assert max(bundle.manifest.training["export_difference"].values()) < 1e-3
    image = cv2.imread(str(next((recipe_file.parent / "totes/mix-object-tote/images").glob("*.jpg"))))
    objects = PerceptionPipeline.from_bundle(bundle.path, score_threshold=0.0).perceive(image)
    assert objects.image_size == (512, 640)
    assert objects.embeddings is not None
    assert objects.embeddings.shape[1] == 128
    assert np.allclose(np.linalg.norm(objects.embeddings, axis=1), 1, atol=1e-4)


def test_metrics_reach_manifest_and_model_card(run: Path, recipe_file: Path, tmp_path: Path) -> None:
    bundle = bundle_run(run, tmp_path / "bundle", version="0.0.1")
    (tmp_path / "metrics.json").write_text(
        json.dumps({"task": "armbench-segmentation", "mask_map50": 0.51234})
    )
    updated = attach_metrics(bundle, bundle.path, [tmp_path / "metrics.json"])
    assert updated.manifest.metrics == {"armbench-segmentation": {"mask_map50": 0.5123}}
    assert updated.fingerprint == bundle.fingerprint
    card = (updated.path / "README.md").read_text()
    assert "mask_map50 | 0.5123" in card
    assert "## Training" in card
    with pytest.raises(BundleError, match="cannot be read as JSON"):
        attach_metrics(updated, bundle.path, [tmp_path / "absent.json"])
    assert ModelBundle.open(bundle.path).manifest.metrics == updated.manifest.metrics


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"weights\.safetensors"):
        load_run(tmp_path)
