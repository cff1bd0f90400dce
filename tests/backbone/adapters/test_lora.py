"""LoRA behind the same functions as the MultiWay-Adapter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mca_perception.backbone import BEiT3
from mca_perception.backbone.adapters import (
    AdapterError,
    LoraConfig,
    MultiWayConfig,
    active_adapter,
    adapter_configs,
    adapter_state_dict,
    base_hash,
    inject,
    load_adapter,
    load_adapter_state,
    remove_adapter,
    save_adapter,
    set_adapter,
    trainable_report,
)

pytest.importorskip("peft", reason="LoRA is an extra: pip install 'mca_perception[lora]'")
RANK = 3
CONFIG = LoraConfig(rank=RANK, alpha=6.0)


def randomise(model: nn.Module, name: str) -> None:
    """Give an adapter values of its own."""
    state = {key: 0.1 * torch.randn_like(value) for key, value in adapter_state_dict(model, name).items()}
    load_adapter_state(model, state, name)


def outputs(model: BEiT3, inputs: Any) -> dict[str, torch.Tensor]:
    """Of every mode."""
    with torch.inference_mode():
        return {mode: model(**given)["encoder_out"] for mode, given in inputs.items()}


def test_fresh_update_changes_nothing_and_alone_trains(backbone: BEiT3, inputs: Any) -> None:
    original, plain = outputs(backbone, inputs), base_hash(backbone)
    inject(backbone, CONFIG)
    assert all(torch.equal(value, original[mode]) for mode, value in outputs(backbone, inputs).items())
    assert base_hash(backbone) == plain
    backbone(**inputs["fused"])["encoder_out"].square().sum().backward()
    trained = {key for key, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert trained == {key for key, _ in backbone.named_parameters() if ".lora_" in key}
    report = trainable_report(backbone)
    assert report.trainable == report.adapters == report.per_module["adapter default.lora"][0] > 0


def test_update_is_low_rank_and_scaled() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6))
    weight = model[0].weight.detach().clone()
    inject(model, LoraConfig(rank=2, alpha=6.0, targets=("0",)), "x")
    randomise(model, "x")
    state = adapter_state_dict(model, "x")
    tokens = torch.randn(5, 4)
    expected = tokens @ (weight + 3.0 * state["beit3.0.lora_B.weight"] @ state["beit3.0.lora_A.weight"]).T
    assert torch.allclose(model[0](tokens) - model[0].base_layer.bias, expected, atol=1e-6)


def test_switching_among_both_kinds_is_exact(backbone: BEiT3, inputs: Any) -> None:
    original = outputs(backbone, inputs)
    results: dict[str | None, Any] = {None: original}
    kinds = {
        "a": CONFIG,
        "m": MultiWayConfig(bottleneck=4, enhancer_dim=8),
        "b": LoraConfig(targets=("fc1",)),
    }
    for name, config in kinds.items():
        inject(backbone, config, name)
        randomise(backbone, name)
        results[name] = outputs(backbone, inputs)
    flags = {key: parameter.requires_grad for key, parameter in backbone.named_parameters()}
    for name in ("a", "b", "m", "a", None, "m", "b", None):
        set_adapter(backbone, name)
        found = outputs(backbone, inputs)
        assert all(torch.equal(value, results[name][mode]) for mode, value in found.items()), name
    assert {key: parameter.requires_grad for key, parameter in backbone.named_parameters()} == flags
    assert not any(".adapters.m.ae.A.fc1.lora" in key for key in flags)  # LoRA wraps the backbone alone
    differing = [not torch.equal(results[x]["fused"], results[y]["fused"]) for x, y in ("ab", "bm", "am")]
    assert all(differing)


def test_file_round_trip_and_removal(
    make_backbone: Callable[..., BEiT3], backbone: BEiT3, inputs: Any, tmp_path: Path
) -> None:
    original = outputs(backbone, inputs)
    inject(backbone, CONFIG, "x")
    randomise(backbone, "x")
    save_adapter(backbone, "x", tmp_path / "lora.safetensors")
    fresh = make_backbone()
    assert load_adapter(fresh, tmp_path / "lora.safetensors", "y") == CONFIG
    expected = outputs(backbone, inputs)
    assert all(torch.equal(value, expected[mode]) for mode, value in outputs(fresh, inputs).items())
    with pytest.raises(AdapterError, match="other backbone weights"):
        load_adapter(make_backbone(seed=1), tmp_path / "lora.safetensors")
    shallow = make_backbone(depth=1)
    with pytest.raises(AdapterError, match="does not fit"):
        load_adapter(shallow, tmp_path / "lora.safetensors", check_base=False)
    assert adapter_configs(shallow) == {}
    remove_adapter(fresh, "y")
    assert active_adapter(fresh) is None
    assert all(torch.equal(value, original[mode]) for mode, value in outputs(fresh, inputs).items())
    load_adapter(fresh, tmp_path / "lora.safetensors", "y")


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_state_dict_of_a_wrapped_model_loads(
    make_backbone: Callable[..., BEiT3], inputs: Any, rank: int
) -> None:
    model, other = make_backbone(), make_backbone(seed=1)
    for each in (model, other):
        inject(each, LoraConfig(rank=rank))
    randomise(model, "default")
    other.load_state_dict(model.state_dict())
    expected = outputs(model, inputs)
    assert all(torch.equal(value, expected[mode]) for mode, value in outputs(other, inputs).items())


def test_absent_targets_are_named(backbone: BEiT3) -> None:
    with pytest.raises(AdapterError, match="no linear layer is named nothing; there are fc1, fc2"):
        inject(backbone, LoraConfig(targets=("nothing",)))
    assert adapter_configs(backbone) == {}
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_layers_that_are_read_without_a_call_are_no_targets() -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2), "fc": nn.Linear(4, 4)})
    with pytest.raises(AdapterError, match=r"named out_proj; there are fc$"):
        inject(model, LoraConfig(targets=("out_proj",)))


def test_missing_library_is_named(backbone: BEiT3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AdapterError, match=r"pip install 'mca_perception\[lora\]'"):
        inject(backbone, CONFIG)
    inject(backbone, MultiWayConfig())
    set_adapter(backbone, None)
