"""Learning rate, budget, parameter groups and the weight average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mca_perception.backbone import create_backbone
from mca_perception.backbone.adapters import MultiWayConfig, inject
from mca_perception.training.model import PerceptionModel
from mca_perception.training.recipe import BudgetSection, OptimiserSection
from mca_perception.training.schedule import (
    WeightAverage,
    layer_scales,
    learning_rate,
    parameter_groups,
    progress,
    set_learning_rate,
)

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


def rates(model: nn.Module, lr: float, layer_decay: float) -> dict[str, float]:
    """The learning rate of every trainable parameter."""
    optimiser = torch.optim.AdamW(parameter_groups(model, 0.05, layer_decay))  # type: ignore[arg-type]
    set_learning_rate(optimiser, lr)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimiser.param_groups for p in group["params"]}


def test_layer_decay_lowers_the_rate_towards_the_input() -> None:
    backbone = create_backbone("beit3_nano_patch16", img_size=32, modalities=("vision", "text"))
    model = PerceptionModel(backbone, {"identification": nn.Linear(2, 2)})
    found = rates(model, 2.0, 0.5)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    expected = {
        "backbone.vision_embed.cls_token": 2 * 0.5**9,
        "backbone.vision_embed.proj.weight": 2 * 0.5**9,
        "backbone.text_embed.weight": 2 * 0.5**9,
        "backbone.encoder.embed_positions.A.weight": 2 * 0.5**9,
        "backbone.encoder.layers.0.self_attn.qkv_proj.A.weight": 2 * 0.5**8,
        "backbone.encoder.layers.3.ffn.B.fc1.bias": 2 * 0.5**5,
        "backbone.encoder.layers.7.final_layer_norm.A.weight": 1.0,
        "backbone.encoder.layer_norm.A.weight": 2.0,
        "heads.identification.weight": 2.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert set(rates(model, 2.0, 1.0).values()) == {2.0}


def test_layer_decay_leaves_adapters_alone() -> None:
    backbone = create_backbone("beit3_nano_patch16", img_size=32)
    inject(backbone, MultiWayConfig(bottleneck=4, enhancer_dim=8))
    model = PerceptionModel(backbone, {})
    found = rates(model, 2.0, 0.5)
    assert len(found) > 8
    assert set(found.values()) == {2.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("backbone.model.cls_token", 0.5**3),
        ("backbone.model.patch_embed.proj.weight", 0.5**3),
        ("backbone.model.blocks.0.norm1.weight", 0.5**2),
        ("backbone.model.blocks.1.norm1.weight", 0.5),
        ("backbone.model.norm.weight", 1.0),
        ("backbone.vision.vision_model.embeddings.patch_embedding.weight", 0.5**3),
        ("backbone.vision.vision_model.pre_layrnorm.weight", 0.5**3),
        ("backbone.vision.vision_model.post_layernorm.weight", 1.0),
        ("backbone.text.token_embedding.weight", 0.5**3),
        ("backbone.text.ln_final.weight", 1.0),
        ("backbone.text.transformer.resblocks.0.ln_1.weight", 0.5),
        ("heads.pretraining.layers.0.weight", 1.0),
    ],
)
def test_layer_decay_knows_other_backbones(name: str, expected: float) -> None:
    blocks = ["backbone.model.blocks.0.a", "backbone.model.blocks.1.a"]
    assert layer_scales([*blocks, name], 0.5)[name] == pytest.approx(expected)
