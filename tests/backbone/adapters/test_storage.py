"""Adapter files: exact round trips, keys of the specification, and refusals that leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mca_perception.backbone import BEiT3
from mca_perception.backbone.adapters import (
    AdapterError,
    MultiWayConfig,
    adapter_configs,
    adapter_state_dict,
    base_hash,
    inject,
    load_adapter,
    load_adapter_state,
    save_adapter,
    set_adapter,
)

SMALL = MultiWayConfig(bottleneck=4, enhancer_dim=8, alpha=0.25, learnable_alpha=True, nke_norm="own")


def randomise(model: BEiT3, name: str) -> None:
    """Give an adapter values of its own."""
    load_adapter_state(
        model, {k: torch.randn_like(v) for k, v in adapter_state_dict(model, name).items()}, name
    )


@pytest.fixture
def saved(backbone: BEiT3, tmp_path: Path) -> Path:
    """A file with an adapter of `backbone`, trained under another name than it will be loaded under."""
    inject(backbone, SMALL, "trained")
    randomise(backbone, "trained")
    save_adapter(backbone, "trained", tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def test_round_trip_is_exact(
    make_backbone: Callable[..., BEiT3], backbone: BEiT3, inputs: Any, saved: Path
) -> None:
    fresh = make_backbone()
    original = fresh(**inputs["fused"])["encoder_out"]
    assert load_adapter(fresh, saved, "loaded") == SMALL
    expected = adapter_state_dict(backbone, "trained")
    assert all(
        torch.equal(value, expected[key]) for key, value in adapter_state_dict(fresh, "loaded").items()
    )
    for given in inputs.values():
        assert torch.equal(fresh(**given)["encoder_out"], backbone(**given)["encoder_out"])
    assert {key for key, p in fresh.named_parameters() if p.requires_grad} == {
        key for key, _ in fresh.named_parameters() if ".adapters.loaded." in key
    }
    set_adapter(fresh, None)
    assert torch.equal(fresh(**inputs["fused"])["encoder_out"], original)
    assert not list(saved.parent.glob("*.tmp"))


def test_file_holds_the_adapter_alone_under_the_names_of_the_specification(saved: Path) -> None:
    keys = set(load_file(saved))
    layer = "beit3.encoder.layers.1."
    assert {key.removeprefix(layer) for key in keys if key.startswith(layer)} == {
        *(f"nke.{m}.{p}" for m in "AB" for p in ("down.weight", "down.bias", "up.weight", "up.bias")),
        *(f"nke.{m}.{p}" for m in "AB" for p in ("norm.weight", "norm.bias", "alpha")),
        *(f"ae.{m}.{p}" for m in "AB" for p in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")),
        *(f"ae.{m}.ffn_layernorm.{p}" for m in "AB" for p in ("weight", "bias")),
    }
    assert saved.stat().st_size < 150_000


def test_other_base_weights_are_refused(make_backbone: Callable[..., BEiT3], saved: Path) -> None:
    other = make_backbone(seed=1)
    keys = set(other.state_dict())
    with pytest.raises(AdapterError, match=r"trained on other backbone weights.*check_base=False"):
        load_adapter(other, saved)
    assert set(other.state_dict()) == keys
    assert all(parameter.requires_grad for parameter in other.parameters())
    load_adapter(other, saved, check_base=False)
    assert adapter_configs(other) == {"default": SMALL}


def test_hash_is_of_the_base_alone(make_backbone: Callable[..., BEiT3], saved: Path) -> None:
    model = make_backbone()
    plain = base_hash(model)
    load_adapter(model, saved)
    assert base_hash(model) == plain
    with torch.no_grad():
        model.encoder.layers[0].ffn["A"].fc1.bias[0] += 1e-6
    assert base_hash(model) != plain
    assert base_hash(make_backbone().to(torch.bfloat16)) not in (plain, base_hash(make_backbone().half()))


@pytest.mark.parametrize(
    "overrides", [{"depth": 1}, {"depth": 3}, {"modalities": ("vision",)}, {"embed_dim": 96}], ids=str
)
def test_other_shapes_are_refused(
    make_backbone: Callable[..., BEiT3], saved: Path, overrides: dict[str, Any]
) -> None:
    other = make_backbone(**overrides)
    keys = set(other.state_dict())
    with pytest.raises(AdapterError, match=r"does not fit the backbone: beit3\.encoder\.layers"):
        load_adapter(other, saved, check_base=False)
    assert set(other.state_dict()) == keys


def test_taken_name_is_refused(backbone: BEiT3, saved: Path) -> None:
    with pytest.raises(AdapterError, match="'trained' already"):
        load_adapter(backbone, saved, "trained")
    with pytest.raises(AdapterError, match="no adapter 'other'"):
        save_adapter(backbone, "other", saved)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _drop_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def _other_settings(path: Path, config: str) -> None:
    metadata = {"format": "mca_adapter_1", "base_sha256": "0", "config": config}
    save_file(load_file(path), path, metadata=metadata)


def _drop_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.popitem()
    metadata = {"format": "mca_adapter_1", "base_sha256": "0", "config": SMALL.model_dump_json()}
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b"nonsense"), "cannot be read"),
        (_truncate, "cannot be read"),
        (_drop_metadata, "no adapter of this release"),
        (_drop_tensor, "is absent in the adapter"),
        (lambda path: _other_settings(path, "{"), "cannot be read"),
        (lambda path: _other_settings(path, '{"kind": "other"}'), "cannot be read"),
        (lambda path: _other_settings(path, '{"kind": "multiway", "bottleneck": 1e12}'), "cannot be read"),
        (lambda path: _other_settings(path, '{"kind": "multiway", "bottleneck": 16384}'), "does not fit"),
    ],
)
def test_damaged_files_are_refused(
    make_backbone: Callable[..., BEiT3], saved: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(saved)
    model = make_backbone()
    with pytest.raises(AdapterError, match=message):
        load_adapter(model, saved, check_base=False)
    assert adapter_configs(model) == {}


def test_empty_adapter_is_saved_too(make_backbone: Callable[..., BEiT3], tmp_path: Path) -> None:
    """The dimension 0 of a sweep."""
    nothing = MultiWayConfig(bottleneck=0, enhancer_dim=0)
    save_adapter(inject(make_backbone(), nothing), "default", tmp_path / "nothing.safetensors")  # type: ignore[arg-type]
    assert load_adapter(make_backbone(), tmp_path / "nothing.safetensors") == nothing
