"""Recipes with an adapter or a frozen backbone: what trains, what a run and a bundle hold, where they may start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mca_perception.backbone import create_backbone, load_checkpoint
from mca_perception.backbone.adapters import active_adapter, inject, load_adapter, plain_key
from mca_perception.datasets.synth.pick_set import PickSettings, write_picks
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.training.bundling import bundle_run, round_to_half
from mca_perception.training.model import build
from mca_perception.training.recipe import load_recipe
from mca_perception.training.run import ADAPTER, load_run, run_recipe

pytestmark = pytest.mark.xdist_group("training")
RECIPE = """
name: tiny
backbone: {{name: beit3_nano_patch16, img_size: 64}}
identification: {{data: {data}/picks, crop_size: 48, batch_size: 4, workers: 0}}
optimiser: {{warmup_steps: 1, lr: 1.0e-2, ema_decay: 0.0}}
budget: {{max_steps: 2}}
"""
MULTIWAY = "adapter={kind: multiway, bottleneck: 8, enhancer_dim: 16}"


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe beside a few synthesised picks."""
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "picks").mkdir()
    write_picks(PickSettings(folder / "picks", 16, 4, 20, None, None, 0.0), 1)
    (folder / "tiny.yaml").write_text(RECIPE.format(data=folder))
    return folder / "tiny.yaml"


def half(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model, rounded in place as an export does."""
    round_to_half(model)
    return model.state_dict()


@pytest.fixture(scope="module")
def plain_run(recipe_file: Path) -> Path:
    """A finished run without adapter."""
    run_recipe(load_recipe(recipe_file), recipe_file.parent / "plain")
    return recipe_file.parent / "plain"


@pytest.fixture(scope="module", params=["multiway", "lora"])
def adapted_run(request: pytest.FixtureRequest, recipe_file: Path, plain_run: Path) -> Path:
    """A finished run with an adapter that starts where `plain_run` ended."""
    if request.param == "lora":
        pytest.importorskip("peft", reason="LoRA is an extra: pip install 'mca_perception[lora]'")
    setting = MULTIWAY if request.param == "multiway" else "adapter=lora"
    out = recipe_file.parent / request.param
    run_recipe(load_recipe(recipe_file, [setting, f"init_from={plain_run}"]), out)
    return out


def test_backbone_stays_and_the_adapter_moves(adapted_run: Path, plain_run: Path) -> None:
    base = load_file(plain_run / "weights.safetensors")
    trained = load_file(adapted_run / "weights.safetensors")
    backbone = [key for key in base if key.startswith("backbone.")]
    assert len(backbone) > 100
    assert all(torch.equal(trained[key], base[key]) for key in backbone)
    assert not torch.equal(
        trained["heads.identification.head.project.weight"], base["heads.identification.head.project.weight"]
    )
    adapter = load_file(adapted_run / ADAPTER)
    assert adapter
    assert all(value.isfinite().all() for value in adapter.values())
    assert any(key.endswith(("up.weight", "lora_B.weight")) and value.any() for key, value in adapter.items())


def test_run_loads_and_its_adapter_fits_the_run_it_started_from(adapted_run: Path, plain_run: Path) -> None:
    _, model, _, _ = load_run(adapted_run)
    _, plain, _, _ = load_run(plain_run)
    images = torch.randn(2, 3, 64, 64)
    load_adapter(plain.backbone, adapted_run / ADAPTER, "identification")
    expected = model.eval().backbone(images)["encoder_out"]
    assert torch.equal(plain.eval().backbone(images)["encoder_out"], expected)


@pytest.mark.slow
def test_bundle_holds_the_adapted_backbone(adapted_run: Path, tmp_path: Path) -> None:
    bundle = bundle_run(adapted_run, tmp_path / "bundle", version="0.0.1")
    recipe, model, _, _ = load_run(adapted_run)
    assert (
        ModelBundle.open(bundle.path).manifest.backbone.model_dump()["adapter"]["kind"] == recipe.adapter.kind
    )
    stored = load_file(bundle.path / "weights.safetensors")
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    assert all(torch.equal(value, stored[plain_key(key)].float()) for key, value in half(model).items())
    expected = model.eval().backbone(images)["encoder_out"].detach().numpy()
    session = onnxruntime.InferenceSession(bundle.path_of("backbone"), providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {"images": images.numpy()})
    assert np.allclose(features, expected, atol=1e-3)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if name.endswith(("up.weight", "fc2.weight", "lora_B.default.weight")) and ".ffn." not in name:
                parameter.zero_()
    assert not np.allclose(features, model.backbone(images)["encoder_out"].detach().numpy(), atol=1e-3)


def test_run_with_an_adapter_resumes_and_starts_others(
    adapted_run: Path, recipe_file: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(adapted_run / "recipe.yaml", ["budget.max_steps=3"])
    assert run_recipe(recipe, adapted_run, resume=True).step == 3
    again, _ = build(recipe.model_copy(update={"init_from": adapted_run}))
    stored = load_file(adapted_run / "weights.safetensors")
    assert all(torch.equal(value, stored[plain_key(key)]) for key, value in again.state_dict().items())
    plain, _ = build(load_recipe(recipe_file, [f"init_from={adapted_run}"]))
    assert active_adapter(plain.backbone) is None
    assert all(torch.equal(value, stored[key]) for key, value in plain.state_dict().items())
    backbone = create_backbone("beit3_nano_patch16", img_size=64)
    assert not load_checkpoint(backbone, adapted_run / "weights.safetensors").missing  # type: ignore[arg-type]


def test_frozen_backbone_trains_the_heads_alone(recipe_file: Path, plain_run: Path) -> None:
    out = recipe_file.parent / "frozen"
    run_recipe(load_recipe(recipe_file, ["backbone.freeze=true", f"init_from={plain_run}"]), out)
    before, after = load_file(plain_run / "weights.safetensors"), load_file(out / "weights.safetensors")
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {key for key in after if key.startswith("heads.")}
    assert not (out / ADAPTER).exists()


def test_report_is_printed_at_the_start(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_recipe(load_recipe(recipe_file, [MULTIWAY, "budget.max_steps=1"]), recipe_file.parent / "reported")
    recipe = load_recipe(recipe_file, [MULTIWAY])
    model, _ = build(recipe)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert f"trains {trained:,} parameters" in capsys.readouterr().err.replace("\n", " ")
    assert recipe.adapter is not None
    with pytest.raises(ValueError, match="already"):
        inject(model.backbone, recipe.adapter)
