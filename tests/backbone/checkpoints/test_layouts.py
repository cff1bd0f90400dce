"""Files of other code: torchscale's BEiT-3 with the official heads and timm's beit3_* give the same features here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mca_perception.backbone import create_beit3, load_checkpoint, read_heads
from mca_perception.backbone.checkpoints.layouts import sort
from tests.support.checkpoints import (
    TASKS,
    VOCABULARY,
    WITHOUT_FINAL_NORM,
    OfficialModel,
    largest_difference,
    randomised,
    save_official,
    torchscale_model,
)

BOTH = ("vision", "text")


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    torch.manual_seed(0)
    return torchscale_model()


@pytest.fixture(scope="module")
def loaded(reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """Our model with the weights of a retrieval file."""
    folder = tmp_path_factory.mktemp("official")
    path = save_official(OfficialModel(reference, "retrieval", 192), folder / "beit3_retrieval.pth")
    model = create_beit3("beit3_nano_patch16", depth=2, vocab_size=VOCABULARY, modalities=BOTH).eval()
    assert not load_checkpoint(model, path).missing
    path.unlink()
    return model


@pytest.mark.parametrize("mode", ["vision", "text", "fused"])
def test_torchscale_checkpoint_gives_torchscale_features(
    loaded: nn.Module, reference: nn.Module, mode: str
) -> None:
    assert largest_difference(loaded, reference, mode) <= 1e-5


@pytest.mark.parametrize("wrapper", ["model", "module", None])
@pytest.mark.parametrize("task", TASKS)
def test_official_files_have_no_unknown_keys(tmp_path: Path, task: str, wrapper: str | None) -> None:
    has_norm = task not in WITHOUT_FINAL_NORM
    source = torchscale_model(depth=1, normalize_output=has_norm)
    official = OfficialModel(source, task, 192)
    path = save_official(official, tmp_path / "beit3.pth", wrapper)
    model = create_beit3("beit3_nano_patch16", depth=1, vocab_size=VOCABULARY, modalities=BOTH)
    report = load_checkpoint(model, path)
    assert report.layout == "official"
    assert set(report.unexpected) == {f"{task} head"}
    assert set(report.loaded) == set(source.state_dict())
    norms = ("encoder.layer_norm.A.weight", "encoder.layer_norm.A.bias")
    assert report.missing.get("vision expert", ()) == (() if has_norm else norms)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in source.state_dict().items())
    heads = read_heads(path)
    expected = {key: value for key, value in official.state_dict().items() if not key.startswith("beit3.")}
    assert set(heads) == set(expected) == set(report.unexpected[f"{task} head"])
    assert all(torch.equal(heads[key], value) for key, value in expected.items())


def timm_difference(name: str, path: Path, **settings: object) -> float:
    """Largest difference of all token features after a round through timm's state dict in a file."""
    timm = pytest.importorskip("timm", reason="timm is installed by `make test` only")
    torch.manual_seed(2)
    theirs = randomised(timm.create_model(f"{name}_224", **settings)).eval()
    save_file(theirs.state_dict(), path)
    # timm's classifier averages patches and normalises afterwards; only with the class token it has a final norm.
    has_norm = settings.get("global_pool") == "token"
    ours = create_beit3(name, depth=len(theirs.blocks), normalize_output=has_norm).eval()
    report = load_checkpoint(ours, path)
    path.unlink()
    assert report.layout == "timm"
    assert report.missing == {"vision expert": ("vision_embed.mask_token",)}
    assert set(report.unexpected) == {"classification head"}
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return float((ours(images)["encoder_out"] - theirs.forward_features(images)).abs().max())


@pytest.mark.parametrize("pooling", ["avg", "token"])
def test_timm_features_at_reduced_depth(tmp_path: Path, pooling: str) -> None:
    difference = timm_difference(
        "beit3_base_patch16", tmp_path / "timm.safetensors", depth=2, global_pool=pooling, num_classes=10
    )
    assert difference <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beit3_base_patch16", "beit3_large_patch16"])
def test_timm_features_in_full(tmp_path: Path, name: str) -> None:
    assert timm_difference(name, tmp_path / "timm.safetensors") <= 1e-4


def test_weights_of_a_run_and_bare_ones() -> None:
    bare = create_beit3("beit3_nano_patch16", depth=1).state_dict()
    run = {f"backbone.{key}": value for key, value in bare.items()}
    run["heads.segmentation.kernel.bias"] = torch.zeros(2)
    for tensors, layout, heads in ((bare, "bare", []), (run, "mca", ["heads.segmentation.kernel.bias"])):
        contents = sort(dict(tensors))
        assert contents.layout == layout
        assert set(contents.backbone) == set(bare)
        assert list(contents.heads) == heads
