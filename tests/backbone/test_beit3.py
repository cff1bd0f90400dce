"""The BEiT-3 vision branch: sizes, public parameter names, geometry of the position table, bad input."""

from __future__ import annotations

import pytest
import torch

from mca_perception.backbone import CONFIGS, create_backbone, list_backbones
from mca_perception.backbone.beit3 import UNUSED_POSITIONS, resize_patch_positions

PER_LAYER = [
    "self_attn_layer_norm.A.weight",
    "self_attn_layer_norm.A.bias",
    *(f"self_attn.{name}_proj.A.{kind}" for name in "kvq" for kind in ("weight", "bias")),
    "self_attn.out_proj.A.weight",
    "self_attn.out_proj.A.bias",
    "self_attn.inner_attn_ln.A.weight",
    "self_attn.inner_attn_ln.A.bias",
    "final_layer_norm.A.weight",
    "final_layer_norm.A.bias",
    *(f"ffn.A.{name}.{kind}" for name in ("fc1", "fc2", "ffn_layernorm") for kind in ("weight", "bias")),
]
OUTSIDE_LAYERS = [
    "vision_embed.mask_token",
    "vision_embed.cls_token",
    "vision_embed.proj.weight",
    "vision_embed.proj.bias",
    "encoder.embed_positions.A.weight",
    "encoder.layer_norm.A.weight",
    "encoder.layer_norm.A.bias",
]


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "img_size", "parameters"),
    [
        ("beit3_base_patch16", 224, 85_893_120),
        ("beit3_base_patch16", 384, 86_184_960),
        ("beit3_large_patch16", 224, 303_550_464),
        ("beit3_large_patch16", 384, 303_939_584),
    ],
)
def test_parameter_count_is_the_published_one(name: str, img_size: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count(create_backbone(name, img_size=img_size)) == parameters


def test_nano_is_small() -> None:
    assert 3_000_000 <= count(create_backbone("beit3_nano_patch16")) <= 6_000_000


def test_parameter_names_are_those_of_the_public_checkpoints() -> None:
    model = create_backbone("beit3_nano_patch16")
    expected = set(OUTSIDE_LAYERS)
    for layer in range(CONFIGS["beit3_nano_patch16"].depth):
        expected |= {f"encoder.layers.{layer}.{name}" for name in PER_LAYER}
    assert set(model.state_dict()) == expected
    assert model.state_dict()["encoder.embed_positions.A.weight"].shape == (
        14 * 14 + 1 + UNUSED_POSITIONS,
        192,
    )


@pytest.mark.parametrize(("height", "width"), [(224, 224), (224, 288), (96, 96), (32, 512)])
def test_features_of_any_size(height: int, width: int) -> None:
    model = create_backbone("beit3_nano_patch16").eval()
    with torch.inference_mode():
        features = model(torch.randn(2, 3, height, width))["encoder_out"]
    assert features.shape == (2, 1 + (height // 16) * (width // 16), 192)
    assert features.isfinite().all()


def test_patches_are_row_major() -> None:
    """Changing one patch changes its own token most, at row * columns + column."""
    torch.manual_seed(0)
    model = create_backbone("beit3_nano_patch16").eval()
    images = torch.zeros(1, 3, 64, 96)
    changed = images.clone()
    changed[:, :, 16:32, 48:64] = 1.0
    with torch.inference_mode():
        difference = (model(changed)["encoder_out"] - model(images)["encoder_out"]).norm(dim=-1)[0]
    assert difference[1:].argmax() == 1 * 6 + 3


def test_positions_of_the_own_grid_are_untouched_and_others_interpolated() -> None:
    encoder = create_backbone("beit3_nano_patch16").encoder
    table = encoder.embed_positions["A"].weight[UNUSED_POSITIONS:]
    assert torch.equal(encoder.image_positions((14, 14)), table)
    resized = encoder.image_positions((7, 20))
    assert resized.shape == (1 + 140, 192)
    assert torch.equal(resized[0], table[0])


def test_resize_keeps_a_constant_table() -> None:
    table = torch.full((16, 4), 0.7)
    assert torch.allclose(resize_patch_positions(table, (4, 4), (9, 5)), torch.full((45, 4), 0.7), atol=1e-6)


def test_drop_path_only_acts_in_training() -> None:
    model = create_backbone("beit3_nano_patch16", drop_path_rate=0.5)
    images = torch.randn(4, 3, 32, 32)
    model.eval()
    assert torch.equal(model(images)["encoder_out"], model(images)["encoder_out"])
    model.train()
    assert not torch.equal(model(images)["encoder_out"], model(images)["encoder_out"])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 224, 224), "N, 3, H, W"),
        ((1, 1, 224, 224), "N, 3, H, W"),
        ((1, 3, 230, 224), "multiple of the patch"),
    ],
)
def test_bad_images_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone("beit3_nano_patch16")(torch.zeros(shape))


def test_unknown_name_lists_the_known_ones() -> None:
    assert "beit3_giant_patch14" in list_backbones()
    with pytest.raises(ValueError, match="beit3_nano_patch16"):
        create_backbone("resnet50")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_heads": 5}, "num_heads"),
        ({"img_size": 230}, "patch_size"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
    ],
)
def test_impossible_configurations_are_refused(overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone("beit3_nano_patch16", **overrides)
