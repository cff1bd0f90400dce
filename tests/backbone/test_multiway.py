"""Modes of the Multiway Transformer: experts, routing, padding, drop path, recomputation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mca_perception.backbone import BackboneError, create_beit3
from mca_perception.backbone.beit3 import BEiT3
from mca_perception.backbone.blocks import FUSED, SHARED, TEXT, VISION, attend

BOTH = ("vision", "text")
NANO = "beit3_nano_patch16"


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def small(**overrides: object) -> BEiT3:
    torch.manual_seed(0)
    settings = {"modalities": BOTH, "depth": 3, "img_size": 64, "vocab_size": 100, **overrides}
    return create_beit3(NANO, **settings).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    return images, torch.randint(4, 100, (2, 6), generator=generator)


@pytest.mark.parametrize(
    ("name", "modalities", "img_size", "parameters"),
    [
        ("beit3_base_patch16", BOTH, 224, 220_987_392),
        ("beit3_base_patch16", BOTH, 384, 221_279_232),
        ("beit3_large_patch16", BOTH, 224, 672_702_464),
        ("beit3_large_patch16", BOTH, 384, 673_091_584),
        ("beit3_base_patch16", ("text",), 224, 135_094_272),
        ("beit3_large_patch16", ("text",), 384, 369_152_000),
        ("beit3_base_patch16", ("vision",), 384, 86_184_960),
        ("beit3_large_patch16", ("vision",), 224, 303_550_464),
    ],
)
def test_parameter_counts_are_the_published_ones(
    name: str, modalities: tuple[str, ...], img_size: int, parameters: int
) -> None:
    with torch.device("meta"):
        assert count(create_beit3(name, img_size=img_size, modalities=modalities)) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("vlmo_base_patch16", 175),
        ("vlmo_base_plus_patch16", 167),
        ("vlmo_large_patch16", 562),
        ("beit3_giant_patch14", 1900),  # published to two digits
    ],
)
def test_sizes_published_in_millions(name: str, millions: int) -> None:
    with torch.device("meta"):
        assert count(create_beit3(name, modalities=BOTH)) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize(
    ("modalities", "present", "absent"),
    [
        (("vision",), "vision_embed", "text_embed"),
        (("text",), "text_embed", "vision_embed"),
    ],
)
def test_only_the_experts_asked_for_are_built(modalities: tuple[str, ...], present: str, absent: str) -> None:
    names = set(small(modalities=modalities).state_dict())
    expert, other = (VISION, TEXT) if modalities == ("vision",) else (TEXT, VISION)
    assert any(name.startswith(present) for name in names)
    assert not any(name.startswith(absent) for name in names)
    assert any(f".{expert}." in name for name in names)
    assert not any(f".{other}." in name for name in names)


def test_shapes_of_every_mode(pair: tuple[Tensor, Tensor]) -> None:
    images, ids = pair
    model = small()
    assert model(images)["encoder_out"].shape == (2, 17, 192)
    assert model(text_ids=ids)["encoder_out"].shape == (2, 6, 192)
    assert model(images, ids)["encoder_out"].shape == (2, 23, 192)


def test_a_single_modality_model_equals_the_same_weights_in_the_full_one(pair: tuple[Tensor, Tensor]) -> None:
    images, ids = pair
    full = small()
    for modality, inputs in (("vision", {"images": images}), ("text", {"text_ids": ids})):
        single = small(modalities=(modality,))
        single.load_state_dict({key: full.state_dict()[key] for key in single.state_dict()})
        assert torch.equal(single(**inputs)["encoder_out"], full(**inputs)["encoder_out"])


@pytest.mark.parametrize("attention", ["decoupled", "shared"])
def test_modalities_meet_in_attention(pair: tuple[Tensor, Tensor], attention: str) -> None:
    """In a fused sequence image states depend on the text, and only in a fused sequence."""
    images, ids = pair
    model = small(attention=attention)
    fused = model(images, ids)["encoder_out"][:, :17]
    other = model(images, ids.flip(1))["encoder_out"][:, :17]
    assert not torch.allclose(fused, other)
    assert not torch.allclose(fused, model(images)["encoder_out"])


def gradient_holders(model: BEiT3, **inputs: Tensor) -> set[str]:
    model.zero_grad(set_to_none=True)
    model(**inputs)["encoder_out"].square().sum().backward()
    return {name for name, value in model.named_parameters() if value.grad is not None}


def test_experts_by_input_with_shared_attention_and_fused_experts(pair: tuple[Tensor, Tensor]) -> None:
    images, ids = pair
    model = small(attention="shared", vl_experts=1)
    assert {key for layer in model.encoder.layers for key in layer.self_attn.qkv_proj} == {SHARED}
    assert [tuple(layer.ffn) for layer in model.encoder.layers] == [(VISION, TEXT)] * 2 + [
        (VISION, TEXT, FUSED)
    ]

    def ffn_experts(names: set[str]) -> set[tuple[int, str]]:
        parts = [name.split(".") for name in names if ".ffn." in name]
        return {(int(part[2]), part[4]) for part in parts}

    lower = {(0, VISION), (1, VISION), (0, TEXT), (1, TEXT)}
    assert ffn_experts(gradient_holders(model, images=images)) == {(n, VISION) for n in range(3)}
    assert ffn_experts(gradient_holders(model, text_ids=ids)) == {(n, TEXT) for n in range(3)}
    assert ffn_experts(gradient_holders(model, images=images, text_ids=ids)) == lower | {(2, FUSED)}


def test_images_alone_touch_no_text_weight(pair: tuple[Tensor, Tensor]) -> None:
    touched = gradient_holders(small(), images=pair[0])
    assert touched
    assert not {name for name in touched if f".{TEXT}." in name or name.startswith("text_embed")}


@pytest.mark.parametrize("fused", [False, True])
def test_padding_changes_nothing_but_itself(pair: tuple[Tensor, Tensor], fused: bool) -> None:
    images, ids = pair
    model, inputs = small(), {"images": images} if fused else {}
    plain = model(text_ids=ids, **inputs)["encoder_out"]
    padded = torch.cat([ids, torch.randint(4, 100, (2, 3))], dim=1)
    mask = torch.zeros_like(padded, dtype=torch.bool)
    mask[:, 6:] = True
    out = model(text_ids=padded, text_padding_mask=mask, **inputs)["encoder_out"]
    torch.testing.assert_close(out[:, : plain.shape[1]], plain, atol=1e-5, rtol=0)


def test_a_text_of_nothing_but_padding_stays_finite() -> None:
    ids = torch.ones(2, 5, dtype=torch.long)
    mask = torch.tensor([[True] * 5, [False] * 5])
    assert small()(text_ids=ids, text_padding_mask=mask)["encoder_out"].isfinite().all()


def test_masked_patches_take_the_mask_token(pair: tuple[Tensor, Tensor]) -> None:
    """What a hidden patch shows cannot matter."""
    model = small()
    with torch.no_grad():
        model.vision_embed.mask_token.fill_(0.3)  # type: ignore[union-attr]
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 5] = True
    changed = pair[0].clone()
    changed[:, :, 16:32, 16:32] += 3.0
    first, second = (model(images, masked_patches=hidden)["encoder_out"] for images in (pair[0], changed))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, model(pair[0])["encoder_out"])


@pytest.mark.parametrize("window_size", [0, 2])
def test_gradient_checkpointing_changes_no_gradient(pair: tuple[Tensor, Tensor], window_size: int) -> None:
    gradients = []
    for recompute in (False, True):
        model = small(
            modalities=("vision",), gradient_checkpointing=recompute, window_size=window_size
        ).train()
        model(pair[0])["encoder_out"].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, kept)


def test_drop_path_rises_linearly() -> None:
    rates = [layer.drop_path.rate for layer in small(drop_path_rate=0.2).encoder.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_explicit_attention_equals_the_fused_kernel() -> None:
    """The path for reduced precision on a CPU, with and without a mask."""
    query, key, value = torch.randn(3, 2, 4, 9, 8).bfloat16()
    mask = torch.rand(2, 1, 1, 9) > 0.3
    for readable in (None, mask):
        reference = attend(query.float(), key.float(), value.float(), readable)
        torch.testing.assert_close(
            attend(query, key, value, readable).float(), reference, atol=0.03, rtol=0.03
        )


@pytest.mark.parametrize(
    ("modalities", "inputs", "message"),
    [
        (BOTH, {}, "no input"),
        (("text",), {"images": torch.zeros(1, 3, 64, 64)}, "'vision'"),
        (("vision",), {"text_ids": torch.zeros(1, 4, dtype=torch.long)}, "'text'"),
        (BOTH, {"text_ids": torch.zeros(4, dtype=torch.long)}, r"\[N, L\]"),
        (BOTH, {"text_ids": torch.zeros(1, 1023, dtype=torch.long)}, "limit of 1022"),
        (
            BOTH,
            {
                "text_ids": torch.zeros(1, 4, dtype=torch.long),
                "text_padding_mask": torch.zeros(1, 5, dtype=torch.bool),
            },
            r"\[N, L\]",
        ),
        (
            BOTH,
            {"images": torch.zeros(2, 3, 64, 64), "text_ids": torch.zeros(3, 4, dtype=torch.long)},
            "2 images do not pair with 3 texts",
        ),
    ],
)
def test_bad_input_is_refused(modalities: tuple[str, ...], inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        small(modalities=modalities)(**inputs)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"modalities": ("text", "vision")}, "modalities"),
        ({"modalities": ("audio",)}, "modalities"),
        ({"attention": "sparse"}, "attention"),
        ({"vl_experts": 9}, "vl_experts"),
        ({"modalities": ("text",), "window_size": 4}, "window_size"),
        ({"global_blocks": (9,)}, "global_blocks"),
        ({"width": 3}, "unknown settings width"),
    ],
)
def test_impossible_configurations_are_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        small(**overrides)
