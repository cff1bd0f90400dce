"""Identification options in a bundle: further graphs, and a fusion of views that is added to a frozen model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.errors import RecipeError
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.training.bundling import add_fusion, bundle_run
from mca_perception.training.recipe import Recipe
from mca_perception.training.run import load_run, run_recipe
from tests.support.odd_picks import write_odd_pick_set, write_pick

pytestmark = [pytest.mark.xdist_group("training"), pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("fusion")
    write_odd_pick_set(root / "picks")
    for i in range(6):
        container = ("007", "008", f"x{i}")
        write_pick(root / "picks", f"01{i:02d}", truth=f"00{7 + i % 2}", container=container)
    return root


def train(folder: Path, name: str, backbone: dict[str, Any], init_from: Path | None, **options: Any) -> Path:
    section = {"data": folder / "picks", "train_split": "all", "crop_size": 32, "batch_size": 4, "workers": 0}
    recipe = Recipe.model_validate(
        {
            "name": name,
            "init_from": init_from,
            "backbone": {"name": "beit3_nano_patch16", "img_size": 32, **backbone},
            "identification": {**section, **options},
            "optimiser": {"warmup_steps": 1, "ema_decay": 0.0},
            "budget": {"max_steps": 2},
        }
    )
    run_recipe(recipe, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def bundle(folder) -> ModelBundle:
    """A model with everything that identification may add but the fusion of views."""
    options = {"poolers": "separate", "references": 2, "reference_fusion": "attention", "loss": "clce"}
    return bundle_run(train(folder, "model", {}, None, **options), folder / "bundle", version="1")


def crops() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(3)]


def test_every_part_has_its_graph(bundle) -> None:
    graphs = {"backbone", "identification", "references", "reference_fusion"}
    assert set(bundle.manifest.graphs) == graphs
    settings = bundle.manifest.identification
    assert (settings.reference_fusion, settings.temperature, settings.views) == ("attention", 0.5, None)
    pipeline = PerceptionPipeline.from_bundle(bundle.path)
    queries = pipeline.embed_crops(crops())
    references = pipeline.embed_crops(crops(), references=True)
    assert np.abs(queries - references).max() > 0.01  # heads of their own
    product = pipeline.embed_references(crops())
    assert product.shape == references.shape
    assert (product == product[0]).all()
    np.testing.assert_allclose(np.linalg.norm(product, axis=1), 1, rtol=1e-5)


def test_fusion_is_added_to_a_frozen_model(folder, bundle) -> None:
    options = {"views": 3, "trainable": "fusion"}
    run = train(folder, "fusion", {"freeze": True}, bundle.path, **options)
    fused = add_fusion(bundle, run, folder / "fused")
    assert fused.manifest.identification.views == 3
    assert fused.manifest.identification.model_extra["fusion_training"]["steps"] == 2
    assert "fusion.safetensors" in fused.manifest.files
    before, after = (PerceptionPipeline.from_bundle(b.path) for b in (bundle, fused))
    rows = after.embed_crops(crops())
    np.testing.assert_array_equal(rows, before.embed_crops(crops()))
    found = after.fuse_views({0: rows[0], 2: rows[2]})
    _, model, _, _ = load_run(run)
    present = torch.tensor([[True, False, True]])
    with torch.inference_mode():
        expected = model.heads["identification"].fuse_views(torch.from_numpy(rows)[None], present)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)  # stored as float16


@pytest.mark.parametrize(
    ("options", "message"),
    [({"views": 3}, "another backbone or embedding"), ({}, "trained no fusion")],
)
def test_runs_that_do_not_fit_are_refused(folder, bundle, options, message) -> None:
    run = train(folder, f"other{len(options)}", {}, None, **options)
    with pytest.raises(RecipeError, match=message):
        add_fusion(bundle, run, folder / "never")
    assert not (folder / "never").exists()
