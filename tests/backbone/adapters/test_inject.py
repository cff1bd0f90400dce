"""Several adapters on one backbone: names, switching, freezing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mca_perception.backbone import BEiT3
from mca_perception.backbone.adapters import (
    AdapterError,
    MultiWayConfig,
    active_adapter,
    adapter_configs,
    freeze_backbone,
    inject,
    remove_adapter,
    set_adapter,
    trainable_report,
    use_adapter,
)

SMALL = MultiWayConfig(bottleneck=4, enhancer_dim=8)


def train_a_little(model: nn.Module, given: Any, steps: int = 3) -> None:
    """Move the active adapter."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        model(**given)["encoder_out"].square().mean().backward()
        optimiser.step()
    model.eval()


def test_switching_there_and_back_is_exact(backbone: BEiT3, inputs: Any) -> None:
    def outputs() -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return {mode: backbone(**given)["encoder_out"] for mode, given in inputs.items()}

    original = outputs()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    results = {}
    for name, config in (("a", SMALL), ("b", MultiWayConfig(bottleneck=0, blocks=(1,)))):
        inject(backbone, config, name)
        train_a_little(backbone, inputs["fused"])
        results[name] = outputs()
    assert not any(torch.equal(results["a"][mode], results["b"][mode]) for mode in inputs)
    for name, expected in (("a", results["a"]), ("b", results["b"]), ("a", results["a"]), (None, original)):
        set_adapter(backbone, name)
        assert active_adapter(backbone) == name
        assert all(torch.equal(value, expected[mode]) for mode, value in outputs().items()), name
    after = backbone.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())  # frozen, bit for bit


def test_inactive_adapter_does_not_move(backbone: BEiT3, inputs: Any) -> None:
    inject(backbone, SMALL, "a")
    inject(backbone, SMALL, "b")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    train_a_little(backbone, inputs["fused"])
    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(".adapters.b." in key for key in changed)


def test_use_adapter_restores_even_after_an_error(backbone: BEiT3) -> None:
    inject(backbone, SMALL, "a")
    inject(backbone, SMALL, "b")

    def fail() -> None:
        with use_adapter(backbone, "a"):
            assert [layer.active_adapter for layer in backbone.encoder.layers] == ["a", "a"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert active_adapter(backbone) == "b"
    with use_adapter(backbone, None):
        assert active_adapter(backbone) is None
    assert [layer.active_adapter for layer in backbone.encoder.layers] == ["b", "b"]


def test_removed_adapter_leaves_nothing(backbone: BEiT3, inputs: Any) -> None:
    keys = set(backbone.state_dict())
    original = backbone(**inputs["fused"])["encoder_out"]
    inject(backbone, SMALL, "a")
    train_a_little(backbone, inputs["fused"])
    remove_adapter(backbone, "a")
    assert set(backbone.state_dict()) == keys
    assert adapter_configs(backbone) == {}
    assert torch.equal(backbone(**inputs["fused"])["encoder_out"], original)
    inject(backbone, SMALL, "a")


def test_copy_has_adapters_of_its_own(backbone: BEiT3) -> None:
    inject(backbone, SMALL, "a")
    twin = copy.deepcopy(backbone)
    remove_adapter(backbone, "a")
    assert active_adapter(twin) == "a"
    set_adapter(twin, None)


@pytest.mark.parametrize("name", ["", "a.b", "1st", "keys", "train", "ä", "x" * 65])
def test_unusable_names_are_refused(backbone: BEiT3, name: str) -> None:
    with pytest.raises(AdapterError, match="not usable"):
        inject(backbone, SMALL, name)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_mistakes_are_named(backbone: BEiT3) -> None:
    inject(backbone, SMALL, "a")
    keys = set(backbone.state_dict())
    with pytest.raises(AdapterError, match="has an adapter 'a' already"):
        inject(backbone, SMALL, "a")
    for change in (set_adapter, remove_adapter):
        with pytest.raises(AdapterError, match=r"no adapter 'b' \(it has: a\)"):
            change(backbone, "b")
    with pytest.raises(AdapterError, match="has 2 blocks"):
        inject(backbone, MultiWayConfig(blocks=(0, 2)), "b")
    with pytest.raises(AdapterError, match="needs a Multiway Transformer"):
        inject(nn.Linear(2, 2), SMALL)
    assert set(backbone.state_dict()) == keys


@pytest.mark.parametrize(
    "settings", [{"bottleneck": -1}, {"bottleneck": 10**9}, {"blocks": ()}, {"nke_norm": "x"}, {"width": 3}]
)
def test_settings_are_bounded(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        MultiWayConfig(**settings)


def test_report_by_part(backbone: BEiT3) -> None:
    model = nn.ModuleDict({"backbone": backbone, "heads": nn.Linear(3, 2)})
    full = trainable_report(model)
    assert (full.trainable, full.percent, full.adapters) == (full.total, 100.0, 0)
    freeze_backbone(backbone)
    assert trainable_report(model).trainable == 8
    inject(backbone, SMALL, "task")
    report = trainable_report(model)
    assert set(report.per_module) == {"backbone", "heads", "adapter task.nke", "adapter task.ae"}
    assert report.per_module["heads"] == (8, 8)
    assert report.per_module["backbone"][0] == 0
    nke, ae = 2 * 192 * 4 + 4 + 192, 2 * 192 * 8 + 3 * 8 + 192
    assert report.adapters == 2 * 2 * (nke + ae)
    assert report.trainable == 8 + report.adapters


def test_checkpointing_gives_the_same_gradients(make_backbone: Callable[..., BEiT3], inputs: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_backbone(gradient_checkpointing=checkpointing).train()
        inject(model, SMALL.model_copy(update={"dropout": 0.0}))
        model(**inputs["fused"])["encoder_out"].square().mean().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(value, gradients[1][key], atol=1e-7) for key, value in gradients[0].items())


def test_adapter_takes_the_hosts_type(backbone: BEiT3, inputs: Any) -> None:
    inject(backbone.to(torch.bfloat16), SMALL)
    given = {**inputs["fused"], "images": inputs["fused"]["images"].bfloat16()}
    assert backbone(**given)["encoder_out"].dtype == torch.bfloat16
