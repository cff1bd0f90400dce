"""What a file is, told from the file alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mca_perception.backbone import CONFIGS, create_beit3
from mca_perception.backbone.checkpoints import detect
from mca_perception.backbone.checkpoints.detecting import describe
from mca_perception.backbone.checkpoints.layouts import Contents, head_task
from mca_perception.errors import CheckpointError

BOTH = ("vision", "text")


def meta_contents(name: str, **settings: Any) -> Contents:
    """State dict of a full model, without its memory."""
    with torch.device("meta"):
        return Contents("bare", create_beit3(name, **settings).state_dict(), {})


@pytest.fixture
def valueless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have no values to look at."""
    monkeypatch.setattr("mca_perception.backbone.checkpoints.detecting.non_finite", lambda tensors: ())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("modalities", [("vision",), ("text",), BOTH])
def test_every_known_model_is_recognised(name: str, modalities: tuple[str, ...], valueless: None) -> None:
    config = CONFIGS[name]
    info = describe(meta_contents(name, modalities=modalities, img_size=336), "file")
    assert (info.backbone, info.overrides, info.modalities) == (name, {}, modalities)
    assert (info.embed_dim, info.depth, info.ffn_dim, info.num_heads, info.attention) == (
        config.embed_dim,
        config.depth,
        config.ffn_dim,
        config.num_heads,
        config.attention,
    )
    expected = (config.patch_size, 336) if "vision" in modalities else (None, None)
    assert (info.patch_size, info.img_size) == expected


@pytest.mark.parametrize(
    ("settings", "overrides"),
    [
        ({"attention": "shared"}, {"attention": "shared"}),
        ({"attention": "shared", "vl_experts": 3}, {"attention": "shared", "vl_experts": 3}),
        ({"vocab_size": 100, "max_text_positions": 66}, {"vocab_size": 100, "max_text_positions": 66}),
        ({"normalize_output": False}, {"normalize_output": False}),
    ],
)
def test_settings_that_differ_from_the_known_model(
    settings: dict[str, Any], overrides: dict[str, Any], valueless: None
) -> None:
    name = "beit3_base_patch16"
    info = describe(meta_contents(name, modalities=BOTH, **settings), "file")
    assert (info.backbone, info.overrides) == (name, overrides)


def test_published_parameter_counts(valueless: None) -> None:
    """Specification of the framework, section 5.4."""
    info = describe(meta_contents("beit3_large_patch16", modalities=BOTH, img_size=384), "file")
    assert info.parameters == {"vision expert": 303_939_584, "text expert": 369_152_000}


def nano(**settings: Any) -> dict[str, Tensor]:
    return create_beit3("beit3_nano_patch16", **settings).state_dict()


def test_a_file_in_full(tmp_path: Path) -> None:
    tensors = {f"backbone.{key}": value.half() for key, value in nano(img_size=384).items()}
    tensors["backbone.encoder.embed_positions.A.weight"][0, 0] = torch.inf
    tensors |= {
        "heads.defects.bias": torch.ones(3),
        "mim_head.bias": torch.ones(5),
        "mlm_head.bias": torch.ones(7),
    }
    save_file(tensors, tmp_path / "file", {"backbone": "beit3_nano_patch16"})
    info = detect(tmp_path / "file")
    assert (info.layout, info.backbone, info.img_size, info.dtype) == (
        "mca",
        "beit3_nano_patch16",
        384,
        "float16",
    )
    assert info.tasks == ("defects", "pre-training")
    assert info.tensors == {"vision expert": 167, "defects head": 1, "pre-training head": 2}
    assert info.parameters == {
        "vision expert": sum(value.numel() for value in nano(img_size=384).values()),
        "defects head": 3,
        "pre-training head": 12,
    }
    assert info.non_finite == ("encoder.embed_positions.A.weight",)
    assert info.metadata == {"backbone": "beit3_nano_patch16"}


def test_unknown_sizes_and_grids_are_told_and_not_guessed(tmp_path: Path) -> None:
    tensors = nano(depth=3)
    tensors["encoder.embed_positions.A.weight"] = torch.zeros(200, 192)
    save_file(tensors, tmp_path / "file")
    info = detect(tmp_path / "file")
    assert (info.backbone, info.num_heads, info.img_size, info.depth) == (None, None, None, 3)


def test_a_file_without_a_transformer(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(3)}, tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"no Multiway Transformer \(first key: fc\.weight\)"):
        detect(tmp_path / "file")


@pytest.mark.parametrize(
    ("key", "others", "task"),
    [
        ("mlm_head.weight", [], "captioning"),
        ("mlm_head.weight", ["mim_head.weight"], "pre-training"),
        ("head.weight", [], "classification"),
        ("head.0.weight", [], "VQA"),
        ("head.dense2.bias", [], "NLVR2"),
        ("language_head.weight", [], "retrieval"),
        ("heads.segmentation.kernel.bias", [], "segmentation"),
        ("heads.bias", [], None),
        ("head.7.weight", [], None),
        ("optimizer.step", [], None),
    ],
)
def test_tasks_of_heads(key: str, others: list[str], task: str | None) -> None:
    assert head_task(key, [key, *others]) == task
