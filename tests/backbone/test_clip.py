"""CLIP as a backbone, against transformers' and open_clip's own forward passes, with random weights."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mca_perception.backbone.clip import OPENAI_NORMALISATION, create_clip, create_open_clip
from mca_perception.backbone.dual_encoder import DualEncoder
from mca_perception.errors import BackboneError

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: make test", exc_type=ImportError
)
open_clip = pytest.importorskip(
    "open_clip", reason="open_clip is not installed: make test", exc_type=ImportError
)

BOTH = ("vision", "text")
END = 99
OPEN_CLIP = "ViT-S-32-alt"
TINY_TEXT = {"width": 48, "heads": 2, "layers": 2}
TINY_VISION = {"width": 64, "layers": 2, "head_width": 32, "patch_size": 32, "image_size": 96}
TINY: dict[str, Any] = {"vision_cfg": TINY_VISION, "text_cfg": TINY_TEXT}


def clip_config(eos_token_id: int = END) -> Any:
    """A CLIP of two blocks whose towers differ in width."""
    common = {"num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.CLIPConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "image_size": 64, "patch_size": 16, **common
        },
        text_config={
            "hidden_size": 48, "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 16,
            "bos_token_id": 98, "eos_token_id": eos_token_id, "pad_token_id": eos_token_id, **common,
        },
        projection_dim=24,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> Any:
    """transformers' own model, with weights far enough from zero to tell states apart."""
    torch.manual_seed(0)
    model = transformers.CLIPModel(clip_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    reference.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip(folder: Path) -> DualEncoder:
    return create_clip(folder, modalities=BOTH).eval()


@pytest.fixture(scope="module")
def open_reference() -> Any:
    torch.manual_seed(0)
    return open_clip.create_model(OPEN_CLIP, **TINY).eval()


@pytest.fixture(scope="module")
def opened(open_reference: Any) -> DualEncoder:
    backbone = create_open_clip(OPEN_CLIP, modalities=BOTH, **TINY).eval()
    backbone.vision.load_state_dict(open_reference.visual.state_dict())
    text = {key: value for key, value in open_reference.state_dict().items() if not key.startswith("visual.")}
    assert backbone.text.load_state_dict(text, strict=False).missing_keys == []
    return backbone


@pytest.fixture(params=["clip", "opened"])
def backbone(request: pytest.FixtureRequest) -> DualEncoder:
    loaded: DualEncoder = request.getfixturevalue(request.param)
    return loaded


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts of 4 and 6 tokens for transformers, padded with the end token as its tokenizer does."""
    ids = torch.tensor([[98, 5, 6, END, END, END], [98, 7, 8, 9, 10, END]])
    return ids, torch.tensor([[False] * 4 + [True] * 2, [False] * 6])


# -- transformers ----------------------------------------------------------------------------------


def test_facts_of_transformers_clip(clip: DualEncoder) -> None:
    assert (clip.embed_dim, clip.text_embed_dim, clip.patch_size, clip.img_size) == (32, 48, 16, 64)
    assert clip.modalities == BOTH
    assert clip.normalisation == OPENAI_NORMALISATION


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (128, 16), (32, 128)])
@torch.no_grad()
def test_image_states_are_those_of_transformers(
    clip: DualEncoder, reference: Any, height: int, width: int
) -> None:
    batch = images(2, 3, height, width)
    states = clip(batch)["encoder_out"]
    expected = reference.vision_model(batch, interpolate_pos_encoding=True)
    assert states.shape == (2, 1 + height * width // 256, 32)
    torch.testing.assert_close(states[:, 0], expected.pooler_output, rtol=0, atol=1e-6)
    normalised = reference.vision_model.post_layernorm(expected.last_hidden_state)
    torch.testing.assert_close(states, normalised, rtol=0, atol=1e-6)


@torch.no_grad()
def test_image_states_give_the_embedding_of_transformers(clip: DualEncoder, reference: Any) -> None:
    """At the size of the table, without interpolation, up to CLIP's own image embedding."""
    batch = images(2, 3, 64, 64)
    embedding = reference.visual_projection(clip(batch)["encoder_out"][:, 0])
    expected = reference(pixel_values=batch, input_ids=texts()[0]).image_embeds
    torch.testing.assert_close(torch.nn.functional.normalize(embedding), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_text_states_are_those_of_transformers(clip: DualEncoder, reference: Any, masked: bool) -> None:
    ids, mask = texts()
    states = clip(text_ids=ids, text_padding_mask=mask if masked else None)["encoder_out"]
    expected = reference.text_model(ids, attention_mask=(~mask).long() if masked else None)
    assert states.shape == (2, 6, 48)
    torch.testing.assert_close(states[:, 0], expected.pooler_output, rtol=0, atol=1e-6)
    torch.testing.assert_close(states[:, 1:], expected.last_hidden_state[:, 1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("eos_token_id", [END, 2])
@torch.no_grad()
def test_the_end_of_a_text_is_that_of_transformers(eos_token_id: int) -> None:
    """Both conventions: the first end token, and the highest id in configurations of before 2023."""
    backbone = create_clip(clip_config(eos_token_id), modalities=("text",)).eval()
    expected = backbone.text(texts()[0]).pooler_output
    states = backbone(text_ids=texts()[0])["encoder_out"]
    torch.testing.assert_close(states[:, 0], expected, rtol=0, atol=1e-6)
    assert (states[:, 0] - states[:, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_texts_differ_at_position_0(backbone: DualEncoder) -> None:
    """CLIP's start token has the same state in every text; what stands for the text must not."""
    ids = torch.tensor([[98, 5, 6, END], [98, 7, 8, END]])
    states = backbone(text_ids=ids)["encoder_out"]
    assert (states[0, 0] - states[1, 0]).abs().max() > 1e-3


def test_a_configuration_gets_fresh_weights_of_its_size() -> None:
    config = clip_config()
    backbone = create_clip(config, img_size=128)
    assert (backbone.img_size, config.vision_config.image_size) == (128, 64)
    assert backbone(images(1, 3, 128, 128))["encoder_out"].shape == (1, 65, 32)


def test_the_preprocessor_of_a_folder_sets_the_normalisation(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert create_clip(tmp_path).normalisation == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    with pytest.raises(BackboneError, match="three numbers each"):
        create_clip(tmp_path)


# -- open_clip -------------------------------------------------------------------------------------


def test_facts_of_open_clip(opened: DualEncoder) -> None:
    assert (opened.embed_dim, opened.text_embed_dim, opened.patch_size, opened.img_size) == (64, 48, 32, 96)
    assert opened.normalisation == OPENAI_NORMALISATION


@torch.no_grad()
def test_image_states_are_those_of_open_clip(opened: DualEncoder, open_reference: Any) -> None:
    batch = images(2, 3, 96, 96)
    states = opened(batch)["encoder_out"]
    expected = open_reference.encode_image(batch)
    torch.testing.assert_close(states[:, 0] @ open_reference.visual.proj, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_other_image_sizes_are_those_of_a_resized_open_clip(opened: DualEncoder, open_reference: Any) -> None:
    """open_clip's own way to another size is a second model with a resized table (bicubic, antialiased)."""
    weights = dict(open_reference.state_dict())
    larger = open_clip.create_model(
        OPEN_CLIP, vision_cfg={**TINY_VISION, "image_size": 192}, text_cfg=TINY_TEXT
    ).eval()
    open_clip.model.resize_pos_embed(weights, larger, antialias=False)
    larger.load_state_dict(weights)
    batch = images(1, 3, 192, 192)
    states = opened(batch)["encoder_out"]
    expected = larger.encode_image(batch)
    torch.testing.assert_close(states[:, 0] @ larger.visual.proj, expected, rtol=0, atol=1e-5)
    assert opened(images(1, 3, 64, 160))["encoder_out"].shape == (1, 11, 64)


@torch.no_grad()
def test_text_states_are_those_of_open_clip(opened: DualEncoder, open_reference: Any) -> None:
    ids = open_clip.get_tokenizer(OPEN_CLIP)(["a dog", "two people riding a bike"])
    states = opened(text_ids=ids)["encoder_out"]
    expected = open_reference.encode_text(ids)
    torch.testing.assert_close(states[:, 0] @ open_reference.text_projection, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_text_tower_of_its_own_is_read_too(opened: DualEncoder) -> None:
    """open_clip keeps the text tower either among the attributes of the model or as a module."""
    apart = open_clip.create_model(OPEN_CLIP, force_custom_text=True, **TINY).eval()
    backbone = create_open_clip(OPEN_CLIP, modalities=("text",), force_custom_text=True, **TINY).eval()
    assert backbone.text.load_state_dict(apart.text.state_dict(), strict=False).missing_keys == []
    ids = open_clip.get_tokenizer(OPEN_CLIP)(["a dog", "two people riding a bike"])
    states = backbone(text_ids=ids)["encoder_out"]
    expected = apart.encode_text(ids)
    torch.testing.assert_close(states[:, 0] @ apart.text.text_projection, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "RN50",
            {"vision_cfg": {"layers": [1] * 4, "width": 16}},
            "image tower ModifiedResNet, not a plain ViT",
        ),
        (
            "ViT-B-16-SigLIP",
            {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224"}},
            "TimmModel.*timm:NAME",
        ),
        (OPEN_CLIP, {"vision_cfg": {**TINY_VISION, "attentional_pool": True}}, "not a plain ViT"),
        (OPEN_CLIP, {"text_cfg": {**TINY_TEXT, "pool_type": "last"}}, "text tower"),
        (OPEN_CLIP, {"text_cfg": {**TINY_TEXT, "no_causal_mask": True}}, "text tower"),
        (OPEN_CLIP, {"text_cfg": {**TINY_TEXT, "embed_cls": True}, "force_custom_text": True}, "text tower"),
        (
            OPEN_CLIP,
            {"text_cfg": {**TINY_TEXT, "pool_type": "last"}, "force_custom_text": True},
            "text tower",
        ),
    ],
)
def test_other_towers_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        create_open_clip(name, **{**TINY, **settings})


def test_img_size_sets_the_position_table_of_open_clip() -> None:
    backbone = create_open_clip(OPEN_CLIP, img_size=64)
    assert (backbone.img_size, backbone.vision.positional_embedding.shape[0]) == (64, 5)


def test_an_unknown_name_of_open_clip_gets_close_ones() -> None:
    with pytest.raises(BackboneError, match=r"close to it: .*ViT-B-32"):
        create_open_clip("ViT-B-33")


def test_an_unknown_argument_of_open_clip_is_named() -> None:
    with pytest.raises(BackboneError, match="no_such_argument"):
        create_open_clip(OPEN_CLIP, no_such_argument=1)


# -- both ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_never_influences_other_tokens(backbone: DualEncoder) -> None:
    ids, mask = texts()
    states = backbone(text_ids=ids, text_padding_mask=mask)["encoder_out"]
    other = torch.where(mask, torch.tensor(3), ids)
    changed = backbone(text_ids=other, text_padding_mask=mask)["encoder_out"]
    torch.testing.assert_close(states[~mask], changed[~mask], rtol=0, atol=1e-6)
    alone = backbone(text_ids=ids[:1, :4])["encoder_out"]
    torch.testing.assert_close(states[:1, :4], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_patches_are_in_row_major_order(backbone: DualEncoder) -> None:
    """Without blocks, changing one patch changes the state of that patch alone."""
    layers = backbone.vision.encoder.layers if hasattr(backbone.vision, "encoder") else None
    holder, name = (
        (backbone.vision.encoder, "layers")
        if layers is not None
        else (backbone.vision.transformer, "resblocks")
    )
    blocks = getattr(holder, name)
    setattr(holder, name, torch.nn.ModuleList())
    size = backbone.patch_size
    batch = images(1, 3, 3 * size, 5 * size)
    changed = batch.clone()
    changed[:, :, size : 2 * size, 3 * size : 4 * size] += 1.0
    difference = (backbone(batch)["encoder_out"] - backbone(changed)["encoder_out"]).abs().amax(dim=-1)[0]
    setattr(holder, name, blocks)
    assert difference.nonzero().flatten().tolist() == [1 + 1 * 5 + 3]


@pytest.mark.parametrize("modalities", [("vision",), ("text",)])
def test_only_the_towers_asked_for_are_built(modalities: tuple[str, ...], folder: Path) -> None:
    for backbone in (
        create_clip(folder, modalities=modalities),
        create_open_clip(OPEN_CLIP, modalities=modalities, **TINY),
    ):
        assert backbone.modalities == modalities
        assert {name.partition(".")[0] for name, _ in backbone.named_parameters()} == set(modalities)
        assert backbone.text_embed_dim == (backbone.embed_dim if modalities == ("text",) else None)
        inputs = (texts()[0],) if modalities == ("vision",) else (images(1, 3, 64, 64),)
        with pytest.raises(BackboneError, match=r"create it with modalities=\('vision', 'text'\)"):
            backbone(**{"text_ids" if modalities == ("vision",) else "images": inputs[0]})


@pytest.mark.parametrize("create", [create_clip, create_open_clip])
def test_gradient_checkpointing_runs_blocks_twice_with_the_same_gradients(create: Any, folder: Path) -> None:
    gradients, calls = [], []
    for gradient_checkpointing in (False, True):
        torch.manual_seed(0)
        source, sizes = (folder, {}) if create is create_clip else (OPEN_CLIP, TINY)
        backbone = create(
            source, modalities=BOTH, gradient_checkpointing=gradient_checkpointing, **sizes
        ).train()
        ran: list[str] = []
        for tower in (backbone.vision, backbone.text):
            block = next(m for m in tower.modules() if isinstance(m, torch.nn.ModuleList))[0]
            next(block.children()).register_forward_hook(lambda *_, ran=ran: ran.append(""))
        loss = backbone(images(1, 3, 64, 64))["encoder_out"].square().mean()
        loss = loss + backbone(text_ids=texts()[0])["encoder_out"].square().mean()
        loss.backward()
        gradients.append([p.grad.norm() for p in backbone.parameters() if p.grad is not None])
        calls.append(len(ran))
    assert calls == [2, 4]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
    assert sum(gradients[0]) > 0


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "got no input"),
        ({"images": images(1, 3, 64, 64), "text_ids": texts()[0]}, "no fused mode.*BEiT-3"),
        ({"images": images(1, 3, 60, 64)}, "60x64 is not a multiple"),
        ({"images": images(3, 64, 64)}, r"must be \[N, 3, H, W\]"),
        ({"text_ids": texts()[0][0]}, r"must be \[N, L\]"),
        ({"text_ids": texts()[0], "text_padding_mask": texts()[1][:, :3]}, r"must be \[N, L\]"),
        ({"text_ids": torch.zeros(1, 100, dtype=torch.int64)}, "exceed the limit"),
    ],
    ids=["nothing", "fused", "size", "images", "ids", "mask", "length"],
)
def test_unusable_input_is_refused(backbone: DualEncoder, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        backbone(**inputs)


@pytest.mark.parametrize("modalities", [(), ("audio",), ("vision", "audio")])
def test_unknown_modalities_are_refused(modalities: tuple[str, ...], folder: Path) -> None:
    with pytest.raises(BackboneError, match="not a choice of"):
        create_clip(folder, modalities=modalities)
    with pytest.raises(BackboneError, match="not a choice of"):
        create_open_clip(OPEN_CLIP, modalities=modalities)


def test_an_unknown_setting_is_named(folder: Path) -> None:
    with pytest.raises(BackboneError, match="drop_path_rate"):
        create_clip(folder, drop_path_rate=0.1)


def break_folder(folder: Path, kind: str) -> None:
    """Make a copy of a good folder unusable in one way."""
    weights = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    if kind == "no weights":
        weights.unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "not all":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        del tensors["vision_model.post_layernorm.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif kind == "other width":
        config["vision_config"]["intermediate_size"] = 128
    elif kind == "other model":
        config["model_type"] = "siglip"
    (folder / "config.json").write_text("{" if kind == "bad json" else json.dumps(config))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no weights", "cannot be loaded"),
        ("truncated", "cannot be loaded"),
        ("not all", "lacks 1 weights, first vision_model.post_layernorm.weight"),
        ("other width", "cannot be loaded"),
        ("other model", "type 'siglip', not 'clip'"),
        ("bad json", "config.json cannot be read"),
    ],
)
def test_an_unsound_folder_is_refused(folder: Path, tmp_path: Path, kind: str, message: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    break_folder(tmp_path, kind)
    with pytest.raises(BackboneError, match=message):
        create_clip(tmp_path)


def test_hub_names_are_refused() -> None:
    with pytest.raises(BackboneError, match=r"config\.json does not exist.*hub names are not fetched"):
        create_clip("openai/clip-vit-base-patch32")


@pytest.mark.parametrize(
    ("package", "create"), [("transformers", create_clip), ("open_clip", create_open_clip)]
)
def test_the_missing_package_is_named(package: str, create: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackboneError, match=rf"need {package}: pip install .*backbones"):
        create("anything")
