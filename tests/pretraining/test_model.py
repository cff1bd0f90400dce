"""Names and shapes of the heads, Magneto's initialisation, and what each stage freezes."""

from __future__ import annotations

import math

import pytest
import torch

from mca_perception.backbone import create_beit3
from mca_perception.errors import RecipeError
from mca_perception.pretraining.model import (
    PretrainingHeads,
    as_multiway,
    freeze_other_parts,
    initialise,
    scale_sub_layernorm,
)
from mca_perception.pretraining.recipe import Objectives, PretrainingRecipe
from tests.support.pretraining import tiny_model

TEXT_ONLY = {"mlm_head.weight": (96, 32), "mlm_head.bias": (96,)}
VISION_ONLY = {"mim_head.weight": (20, 32), "mim_head.bias": (20,)}
PAIRS = {"vision_head.weight": (32, 32), "language_head.weight": (32, 32), "logit_scale": ()}


@pytest.mark.parametrize(
    ("modalities", "expected"),
    [
        (("vision",), VISION_ONLY),
        (("text",), TEXT_ONLY),
        (("vision", "text"), TEXT_ONLY | VISION_ONLY | PAIRS),
    ],
)
def test_heads_have_the_names_and_shapes_of_beit3(
    modalities: tuple[str, ...], expected: dict[str, tuple[int, ...]]
) -> None:
    heads = PretrainingHeads(32, modalities=modalities, vocab_size=96, codes=20)
    shapes = {name: tuple(tensor.shape) for name, tensor in heads.state_dict().items()}
    assert {name: shape for name, shape in shapes.items() if not name.startswith("itm_head")} == expected


def test_masked_data_heads_complete_the_published_count() -> None:
    """276,510,730 parameters at base are the backbone's 220,987,392 and the two heads (section 5.4)."""
    with torch.device("meta"):
        heads = PretrainingHeads(768, modalities=("vision", "text"), vocab_size=64010, codes=8192)
    count = sum(
        parameter.numel() for head in (heads.mlm_head, heads.mim_head) for parameter in head.parameters()
    )
    assert 220_987_392 + count == 276_510_730
    contrast = [heads.vision_head.weight, heads.language_head.weight, heads.logit_scale]
    assert 220_987_392 + sum(parameter.numel() for parameter in contrast) == 222_167_041


def test_temperature_starts_at_seven_hundredths() -> None:
    assert tiny_model()[1].logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-6)


@pytest.mark.parametrize("depth", [2, 5])
def test_magneto_scales_the_value_path_and_nothing_else(depth: int) -> None:
    model, _ = tiny_model(depth=depth)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)  # biases start at zero: scaling them would not show
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scale_sub_layernorm(model)
    factor = math.sqrt(math.log(2 * depth))
    scaled = set()
    for name, tensor in model.state_dict().items():
        if torch.equal(tensor, before[name]):
            continue
        assert torch.allclose(tensor, before[name] * factor), name
        scaled.add(name.split("layers.")[-1].split(".", 1)[-1])
    assert scaled == {
        f"{layer}.{kind}"
        for expert in "AB"
        for layer in (
            f"ffn.{expert}.fc1",
            f"ffn.{expert}.fc2",
            f"self_attn.v_proj.{expert}",
            f"self_attn.out_proj.{expert}",
        )
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("wanted", "sub_layernorm", "changed"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_recipe_decides_about_the_scaling(wanted: bool, sub_layernorm: bool, changed: bool) -> None:
    model, _ = tiny_model(sub_layernorm=sub_layernorm)
    before = model.encoder.layers[0].ffn["A"].fc1.weight.detach().clone()  # type: ignore[index]
    recipe = PretrainingRecipe(data="x", objectives=Objectives(mim=1.0), scale_initialisation=wanted)  # type: ignore[arg-type]
    initialise(model, recipe)
    assert torch.equal(before, model.encoder.layers[0].ffn["A"].fc1.weight) is not changed  # type: ignore[index]


LANGUAGE = ["text_embed", "positions.B", "ffn.B", "final_layer_norm.B"]
VISION = ["vision_embed", "positions.A", "ffn.A", "final_layer_norm.A"]
OWN = ["k_proj.{}", "out_proj.{}", "inner_attn_ln.{}", "encoder.layer_norm.{}"]
SHARED = ["k_proj.shared", "self_attn_layer_norm.shared"]
FINAL = ["encoder.layer_norm.shared"]


@pytest.mark.parametrize(
    ("attention", "part", "trained", "frozen"),
    [
        ("decoupled", "text", [*LANGUAGE, *(name.format("B") for name in OWN)], [".A.", "vision_embed"]),
        ("decoupled", "vision", [*VISION, *(name.format("A") for name in OWN)], [".B.", "text_embed"]),
        ("shared", "text", [*LANGUAGE, *FINAL], [".A.", *SHARED, ".VL.", "vision_embed"]),
        ("shared", "vision", [*VISION, *SHARED, *FINAL], [".B.", ".VL.", "text_embed"]),
        ("decoupled", "all", [""], []),
    ],
)
def test_stage_freezes_the_other_experts(
    attention: str, part: str, trained: list[str], frozen: list[str]
) -> None:
    model, _ = tiny_model(attention=attention, vl_experts=1 if attention == "shared" else 0)
    freeze_other_parts(model, part)  # type: ignore[arg-type]
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    public = {name.replace("qkv_proj", "k_proj"): value for name, value in trains.items()}
    for fragment in trained:
        matching = [value for name, value in public.items() if fragment in name]
        assert matching
        assert all(matching), fragment
    for fragment in frozen:
        matching = [value for name, value in public.items() if fragment in name]
        assert matching
        assert not any(matching), fragment


def test_what_is_frozen_already_stays_so() -> None:
    model, _ = tiny_model()
    model.requires_grad_(False)
    freeze_other_parts(model, "all")
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_other_backbones_are_refused() -> None:
    model = create_beit3("beit3_nano_patch16", img_size=32)
    assert as_multiway(model) is model
    with pytest.raises(RecipeError, match="Multiway"):
        as_multiway(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
