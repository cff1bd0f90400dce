"""timm's Vision Transformers as backbones, against their own forward_features."""

import sys
from typing import Any

import pytest
import torch

from mca_perception.backbone.timm_vit import TimmBackbone, create_timm
from mca_perception.errors import BackboneError

timm = pytest.importorskip("timm", reason="timm is not installed: make test", exc_type=ImportError)

# name -> depth-independent facts: patch size, tokens before the patches, whether one of them is CLS.
MODELS = {
    "vit_tiny_patch16_224": (16, 1, True),
    "deit3_small_patch16_224": (16, 1, True),
    "deit_tiny_distilled_patch16_224": (16, 2, True),
    "vit_base_patch16_siglip_224": (16, 0, False),
    "vit_small_patch14_reg4_dinov2": (14, 5, True),
    "vit_little_patch16_reg1_gap_256": (16, 1, False),
    "eva02_tiny_patch14_224": (14, 1, True),
    "vit_small_patch16_dinov3": (16, 5, True),
    "beit3_base_patch16_224": (16, 1, True),
    "vit_tiny_r_s16_p8_224": (32, 1, True),
}
NAME = "vit_tiny_patch16_224"


def build(name: str, **overrides: Any) -> TimmBackbone:
    """A model of two blocks, where timm can shorten it."""
    torch.manual_seed(0)
    return create_timm(name, depth=2, **overrides).eval()


@pytest.fixture(scope="module", params=MODELS)
def backbone(request: pytest.FixtureRequest) -> TimmBackbone:
    return build(request.param)


@pytest.fixture(scope="module")
def tiny() -> TimmBackbone:
    return build(NAME)


def images(backbone: TimmBackbone, rows: int, columns: int, count: int = 2) -> torch.Tensor:
    size = backbone.patch_size
    return torch.randn(count, 3, rows * size, columns * size, generator=torch.Generator().manual_seed(1))


# -- states ----------------------------------------------------------------------------------------


def test_facts_of_the_model(backbone: TimmBackbone) -> None:
    expected = MODELS[backbone.name]
    assert (backbone.patch_size, backbone.prefix_tokens, backbone.has_class_token) == expected
    assert backbone.embed_dim == backbone.model.num_features
    assert backbone.modalities == ("vision",)
    assert backbone.img_size == 224
    assert list(backbone.normalisation.mean) == list(backbone.model.pretrained_cfg["mean"])
    assert list(backbone.normalisation.std) == list(backbone.model.pretrained_cfg["std"])


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5), (6, 2)])
@torch.no_grad()
def test_states_are_those_of_timm(backbone: TimmBackbone, rows: int, columns: int) -> None:
    batch = images(backbone, rows, columns)
    states = backbone(batch)["encoder_out"]
    assert states.shape == (2, 1 + rows * columns, backbone.embed_dim)
    expected = backbone.model.forward_features(batch)
    patches = expected[:, backbone.prefix_tokens :]
    torch.testing.assert_close(states[:, 1:], patches, rtol=0, atol=0)
    first = expected[:, 0] if backbone.has_class_token else patches.mean(dim=1)
    torch.testing.assert_close(states[:, 0], first, rtol=0, atol=0)


@torch.no_grad()
def test_the_table_size_is_that_of_the_library() -> None:
    """At the size of its position table the backbone equals a model that knows only this one size."""
    torch.manual_seed(0)
    reference = timm.create_model(NAME, num_classes=0, depth=2).eval()
    backbone = build(NAME)
    backbone.model.load_state_dict(reference.state_dict())
    batch = images(backbone, 14, 14, count=1)
    expected = reference.forward_features(batch)
    torch.testing.assert_close(backbone(batch)["encoder_out"], expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_patches_are_in_row_major_order(tiny: TimmBackbone) -> None:
    """Without attention, changing one patch changes the state of that patch alone."""
    blocks, tiny.model.blocks = tiny.model.blocks, torch.nn.Sequential()
    batch = images(tiny, 3, 5, count=1)
    changed = batch.clone()
    changed[:, :, 16:32, 48:64] += 1.0  # second row, fourth column
    difference = (tiny(batch)["encoder_out"] - tiny(changed)["encoder_out"]).abs().amax(dim=-1)[0]
    tiny.model.blocks = blocks
    assert difference.nonzero().flatten().tolist() == [1 + 1 * 5 + 3]


# -- options ---------------------------------------------------------------------------------------


def test_img_size_sets_the_position_table() -> None:
    backbone = build(NAME, img_size=160)
    assert backbone.img_size == 160
    assert backbone.model.pos_embed.shape[1] == 1 + 10 * 10


def test_overrides_reach_timm() -> None:
    assert build(NAME, embed_dim=96).embed_dim == 96


def test_gradient_checkpointing_runs_blocks_twice_with_the_same_gradients() -> None:
    gradients, calls = [], []
    for gradient_checkpointing in (False, True):
        backbone = build(NAME, gradient_checkpointing=gradient_checkpointing).train()
        ran: list[str] = []
        backbone.model.blocks[0].norm1.register_forward_hook(lambda *_, ran=ran: ran.append(""))
        backbone(images(backbone, 2, 2))["encoder_out"].square().mean().backward()
        gradients.append(backbone.model.patch_embed.proj.weight.grad)
        calls.append(len(ran))
    assert calls == [1, 2]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-8)
    assert gradients[0].abs().sum() > 0


def test_building_leaves_the_mode_alone() -> None:
    assert create_timm(NAME, depth=1).model.training


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "swin_tiny_patch4_window7_224",
        "convnext_atto",
        "beit_base_patch16_224",
        "cait_xxs24_224",
        "xcit_nano_12_p16_224",
        "hiera_tiny_224",
        "mixer_s16_224",
    ],
)
def test_models_that_are_no_plain_vit_are_refused(name: str) -> None:
    with pytest.raises(BackboneError, match=rf"timm:{name}\b.*take a plain ViT"):
        create_timm(name)


def test_an_unknown_name_gets_close_ones() -> None:
    with pytest.raises(BackboneError, match="vit_tiny_patch16_224"):
        create_timm("vit_tiny_patch16_225")


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(BackboneError, match="no_such_argument"):
        create_timm(NAME, no_such_argument=1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 30, 32), "30x32"), ((1, 1, 32, 32), "got shape"), ((3, 32, 32), "got shape")],
)
def test_images_of_the_wrong_shape_are_refused(
    tiny: TimmBackbone, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(BackboneError, match=message):
        tiny(torch.zeros(shape))


def test_texts_are_refused(tiny: TimmBackbone) -> None:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(BackboneError, match="reads images only: for texts take a BEiT-3"):
        tiny(text_ids=ids)
    with pytest.raises(BackboneError, match="reads images only"):
        tiny(torch.zeros(1, 3, 32, 32), ids)
    with pytest.raises(BackboneError, match="pass images"):
        tiny()


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackboneError, match=r"need timm: pip install .*backbones"):
        create_timm(NAME)
