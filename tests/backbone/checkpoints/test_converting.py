"""Conversion to safetensors: the same features, the same resizing, and nothing half written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from mca_perception.backbone import CONFIGS, BackboneConfig, create_beit3, load_checkpoint, read_heads
from mca_perception.backbone.checkpoints import convert, converting, detect
from mca_perception.errors import BackboneError, CheckpointError
from tests.support.checkpoints import (
    VOCABULARY,
    OfficialModel,
    largest_difference,
    randomised,
    save_official,
    torchscale_model,
)

BOTH = ("vision", "text")
WIDTH, DEPTH, HEADS = 64, 2, 2
TINY = "beit3_tiny_patch16"


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """A known backbone that is quick to write."""
    config = BackboneConfig(patch_size=16, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, ffn_dim=4 * WIDTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, TINY, config)
        yield


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    torch.manual_seed(0)
    return torchscale_model(DEPTH, WIDTH, HEADS)


@pytest.fixture(scope="module")
def official(reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retrieval file."""
    path = tmp_path_factory.mktemp("official") / "beit3.pth"
    return save_official(OfficialModel(reference, "retrieval", WIDTH), path)


def loaded(path: Path, **settings: Any) -> nn.Module:
    model = create_beit3(TINY, **{"vocab_size": VOCABULARY, **settings}).eval()
    assert not load_checkpoint(model, path).missing
    return model


@pytest.mark.parametrize("mode", ["vision", "text", "fused"])
def test_official_to_safetensors_keeps_the_features(
    official: Path, reference: nn.Module, tmp_path: Path, mode: str
) -> None:
    report = convert(official, tmp_path / "out.safetensors")
    assert (report.missing, report.unexpected) == ({}, {})
    assert largest_difference(loaded(tmp_path / "out.safetensors", modalities=BOTH), reference, mode) <= 1e-5


def test_header_and_heads(official: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    convert(official, out, img_size=384)
    with safe_open(out, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["source_layout"] == "official"
    assert metadata["source_sha256"] == hashlib.sha256(official.read_bytes()).hexdigest()
    assert (metadata["backbone"], metadata["modalities"]) == (TINY, "vision,text")
    settings = json.loads(metadata["settings"])
    assert settings == {"img_size": 384, "vocab_size": VOCABULARY}
    loaded(out, modalities=BOTH, **settings)
    heads = read_heads(official)
    assert set(heads) == {"vision_head.weight", "language_head.weight", "logit_scale"}
    assert all(torch.equal(value, heads[key]) for key, value in read_heads(out).items())
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_another_image_size_equals_resizing_while_loading(
    official: Path, tmp_path: Path, dtype: str | None
) -> None:
    same, larger = tmp_path / "same.safetensors", tmp_path / "larger.safetensors"
    convert(official, same, dtype=dtype)
    assert convert(same, larger, img_size=320, modalities=("vision",)).positions_resized
    converted, resized = (loaded(path, img_size=320).state_dict() for path in (larger, same))
    assert all(torch.equal(converted[key], value) for key, value in resized.items())
    info = detect(larger)
    assert (info.img_size, info.modalities, info.dtype) == (320, ("vision",), dtype or "float32")


@pytest.mark.parametrize("modalities", [("vision",), ("text",), BOTH])
def test_modalities(official: Path, tmp_path: Path, modalities: tuple[str, ...]) -> None:
    out = tmp_path / "out.safetensors"
    report = convert(official, out, modalities=modalities)
    assert set(report.unexpected) == {f"{name} expert" for name in BOTH if name not in modalities}
    assert detect(out).modalities == modalities


def test_shared_attention(official: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert convert(official, out, init_shared_from="mean").missing == {}
    info = detect(out)
    assert (info.attention, info.backbone) == ("shared", TINY)
    loaded(out, modalities=BOTH, attention="shared")


def test_timm_to_safetensors(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is installed by `make test` only")
    model = randomised(
        timm.create_model("beit3_base_patch16_224", embed_dim=WIDTH, num_heads=HEADS, depth=DEPTH)
    ).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "timm.pth")
    report = convert(tmp_path / "timm.pth", tmp_path / "out.safetensors")
    assert report.missing == {"vision expert": ("vision_embed.mask_token",)}
    assert set(read_heads(tmp_path / "out.safetensors")) == {
        "fc_norm.weight",
        "fc_norm.bias",
        "head.weight",
        "head.bias",
    }
    ours = create_beit3(TINY, normalize_output=False).eval()
    load_checkpoint(ours, tmp_path / "out.safetensors")
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        difference = (ours(images)["encoder_out"] - model.forward_features(images)).abs().max()
    assert difference <= 1e-4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"out": "out.pth"}, CheckpointError, "must end in .safetensors"),
        ({"out": "nowhere/out.safetensors"}, CheckpointError, "its folder does not exist"),
        ({"out": "."}, CheckpointError, "must end in"),
        ({"out": "there.safetensors"}, CheckpointError, "overwrite it with --force"),
        ({"img_size": 100}, BackboneError, "100 is not a multiple of patch_size 16"),
        ({"img_size": 160_000}, CheckpointError, "outside 1 to 4096"),
        (
            {"modalities": ("vision", "sound")},
            CheckpointError,
            "no sound expert; choose modalities out of vision, text",
        ),
        ({"modalities": ("text", "vision")}, BackboneError, "must be"),
        ({"dtype": "int8"}, CheckpointError, "'int8' is unknown; choose one of float32"),
        (
            {"backbone": "beit3_base_patch16"},
            CheckpointError,
            r"mask_token is \(1, 1, 64\) in the file and \(1, 1, 768\)",
        ),
        ({"backbone": "resnet"}, BackboneError, "unknown backbone 'resnet'"),
    ],
)
def test_refusals_leave_no_file(
    official: Path, tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    there = tmp_path / "there.safetensors"
    there.write_text("before")
    out = tmp_path / arguments.pop("out", "out.safetensors")
    with pytest.raises(error, match=message):
        convert(official, out, **arguments)
    assert there.read_text() == "before"
    assert list(tmp_path.iterdir()) == [there]


def test_unknown_sizes(tmp_path: Path) -> None:
    torch.save(create_beit3(TINY, depth=3).state_dict(), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"the sizes of no known backbone .*depth 3"):
        convert(tmp_path / "file.pth", tmp_path / "out.safetensors")


def test_force_replaces_the_file_as_a_whole(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("before")

    def fail(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(converting, "save_file", fail)
        with pytest.raises(CheckpointError, match="cannot be written: disk full"):
            convert(official, out, force=True)
    assert out.read_text() == "before"
    assert list(tmp_path.iterdir()) == [out]
    convert(official, out, force=True)
    assert detect(out).backbone == TINY
