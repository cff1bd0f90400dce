"""The MultiWay-Adapter's modules: sizes, start, equation, routing and gradients (specification, section 9.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.backbone import BEiT3, create_beit3
from mca_perception.backbone.adapters import (
    MultiWayConfig,
    inject,
    remove_adapter,
    set_adapter,
    trainable_report,
)
from mca_perception.backbone.adapters.multiway import MultiWayAdapter

BOTH = ("vision", "text")
RELU = {"ae_form": "bottleneck_relu"}


def randomise(model: nn.Module) -> None:
    """Give every adapter parameter a value of its own, so that none is hidden behind a zero."""
    generator = torch.Generator().manual_seed(3)
    for key, parameter in model.named_parameters():
        if ".adapters." in key or isinstance(model, MultiWayAdapter):
            with torch.no_grad():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def hosts() -> dict[str, BEiT3]:
    """The published sizes with both experts, without storage."""
    with torch.device("meta"):
        return {size: create_beit3(f"beit3_{size}_patch16", modalities=BOTH) for size in ("base", "large")}


@pytest.mark.parametrize(
    ("settings", "base", "large"),
    [
        ({}, 7_125_504, 18_994_176),
        (RELU, 7_119_360, 18_981_888),
        ({**RELU, "nke_norm": "own"}, 7_193_088, 19_178_496),
        ({**RELU, "ae_sharing": "shared"}, 4_749_312, 12_662_784),
        ({"enhancer_dim": 0}, 2_379_264, 6_343_680),
        ({"bottleneck": 1, "enhancer_dim": 0}, 55_320, None),
        ({"bottleneck": 16, "enhancer_dim": 0}, 608_640, None),
        ({"bottleneck": 32, "enhancer_dim": 0}, 1_198_848, None),
        ({"bottleneck": 128, "enhancer_dim": 0}, 4_740_096, None),
        ({"bottleneck": 1}, 4_801_560, None),
        ({"bottleneck": 16}, 5_354_880, None),
        ({"bottleneck": 32}, 5_945_088, None),
        ({"bottleneck": 128}, 9_486_336, None),
        ({"bottleneck": 0, "enhancer_dim": 0}, 0, 0),
        ({"learnable_alpha": True}, 7_125_504 + 24, 18_994_176 + 48),
        ({"blocks": (0, 11)}, 7_125_504 // 6, None),
        # The released code's adapter, as wide as the host's feed-forward network.
        ({"enhancer_dim": 3072, "ae_sharing": "shared"}, 59_122_176, None),
        ({"enhancer_dim": 4096, "ae_sharing": "shared"}, None, 207_989_760),
    ],
)
def test_counts_equal_the_specification(
    hosts: dict[str, BEiT3], settings: dict[str, Any], base: int | None, large: int | None
) -> None:
    for size, expected in (("base", base), ("large", large)):
        if expected is not None:
            with torch.device("meta"):
                report = trainable_report(inject(hosts[size], MultiWayConfig(**settings)))
            remove_adapter(hosts[size], "default")
            assert report.trainable == report.adapters == expected


@pytest.mark.parametrize(
    ("size", "width", "full", "percent"),
    [("base", 768, 222_167_041, 3.21), ("large", 1024, 674_799_617, 2.81)],
)
def test_trainable_percentage_of_the_retrieval_model(
    hosts: dict[str, BEiT3], size: str, width: int, full: int, percent: float
) -> None:
    """Both retrieval heads and the temperature are frozen, and count into what full fine-tuning trains."""
    with torch.device("meta"):
        inject(hosts[size], MultiWayConfig(), "retrieval")
        heads = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in BOTH)
        temperature = nn.ParameterList([nn.Parameter(torch.zeros(()))])
    model = nn.ModuleDict(
        {
            "beit3": hosts[size],
            "heads": heads.requires_grad_(False),
            "scale": temperature.requires_grad_(False),
        }
    )
    report = trainable_report(model)
    remove_adapter(hosts[size], "retrieval")
    assert report.total - report.adapters == full
    assert round(report.percent, 2) == percent
    assert f"{percent:.2f} %" in str(report)


@pytest.mark.parametrize(
    ("host", "overrides"),
    [
        ("beit3_nano_patch16", {}),
        ("beit3_nano_patch16", {"attention": "shared", "vl_experts": 1}),
        ("vlmo_base_patch16", {"embed_dim": 96, "ffn_dim": 192, "num_heads": 2, "vl_experts": 1}),
    ],
    ids=["decoupled", "shared attention, VL expert", "vlmo"],
)
@pytest.mark.parametrize("settings", [{}, {**RELU, "nke_norm": "own"}, {"ae_sharing": "shared"}], ids=str)
def test_fresh_adapter_changes_nothing(
    make_backbone: Callable[..., BEiT3],
    inputs: Any,
    host: str,
    overrides: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    model = make_backbone(host, **overrides)
    original = {mode: model(**given)["encoder_out"] for mode, given in inputs.items()}
    inject(model, MultiWayConfig(**settings))
    for mode, given in inputs.items():
        assert (model(**given)["encoder_out"] - original[mode]).abs().max() == 0.0, mode
    randomise(model)
    assert all(
        not torch.equal(model(**given)["encoder_out"], original[mode]) for mode, given in inputs.items()
    )
    set_adapter(model, None)
    for mode, given in inputs.items():
        assert torch.equal(model(**given)["encoder_out"], original[mode]), mode


def test_enhancer_that_does_not_start_at_zero(backbone: BEiT3, inputs: Any) -> None:
    original = backbone(**inputs["vision"])["encoder_out"]
    inject(backbone, MultiWayConfig(zero_init_enhancer=False))
    enhancer = backbone.encoder.layers[0].adapters["default"].ae["A"]
    assert 0 < enhancer.fc2.weight.abs().max() <= 0.02
    assert not torch.equal(backbone(**inputs["vision"])["encoder_out"], original)


def by_hand(
    config: MultiWayConfig, adapter: MultiWayAdapter, residual: Tensor, normed: Tensor, ffn: Tensor
) -> Tensor:
    """Eqs. 6.1 and 6.2 and the enhancer, in matrices; one modality."""
    nke, ae = dict(adapter.nke["A"].named_parameters()), dict(adapter.ae["A"].named_parameters())
    alpha = nke.get("alpha", config.alpha)
    read = {"host": normed, "none": residual}.get(config.nke_norm)
    if read is None:
        read = F.layer_norm(residual, (4,), nke["norm.weight"], nke["norm.bias"], 1e-5)
    extracted = (
        torch.relu(read @ nke["down.weight"].T + nke["down.bias"]) @ nke["up.weight"].T + nke["up.bias"]
    )
    h = ffn + alpha * extracted + residual
    if config.ae_form == "subln_gelu":
        hidden = F.gelu(h @ ae["fc1.weight"].T + ae["fc1.bias"])
        hidden = F.layer_norm(hidden, (5,), ae["ffn_layernorm.weight"], ae["ffn_layernorm.bias"], 1e-5)
    else:
        read = (
            F.layer_norm(h, (4,), ae["norm.weight"], ae["norm.bias"], 1e-5) if config.nke_norm == "own" else h
        )
        hidden = torch.relu(read @ ae["fc1.weight"].T + ae["fc1.bias"])
    return h + hidden @ ae["fc2.weight"].T + ae["fc2.bias"]


@pytest.mark.parametrize("nke_norm", ["host", "own", "none"])
@pytest.mark.parametrize("ae_form", ["subln_gelu", "bottleneck_relu"])
@pytest.mark.parametrize("learnable_alpha", [False, True])
def test_output_is_the_equation(nke_norm: Any, ae_form: Any, learnable_alpha: bool) -> None:
    config = MultiWayConfig(
        bottleneck=3,
        enhancer_dim=5,
        alpha=0.7,
        nke_norm=nke_norm,
        ae_form=ae_form,
        learnable_alpha=learnable_alpha,
    )
    adapter = MultiWayAdapter(config, ("A",), 4, drop_path=0.0, eps=1e-5).eval()
    randomise(adapter)
    residual, normed, ffn = torch.randn(3, 2, 6, 4).unbind(0)
    expected = by_hand(config, adapter, residual, normed, ffn)
    assert torch.allclose(adapter(residual, normed, residual + ffn, (("A", 6),)), expected, atol=1e-6)


def test_numbers_of_a_worked_example() -> None:
    """x' = (1, -2), LN2(x') = (1, -1), FFN = (0.5, 0.5); NKE reads the first channel; alpha 0.5."""
    config = MultiWayConfig(bottleneck=1, enhancer_dim=0, alpha=0.5)
    adapter = MultiWayAdapter(config, ("A",), 2, drop_path=0.0, eps=1e-5).eval()
    extractor = adapter.nke["A"]
    with torch.no_grad():
        extractor.down.weight.copy_(torch.tensor([[3.0, 0.0]]))
        extractor.down.bias.fill_(1.0)
        extractor.up.weight.copy_(torch.tensor([[1.0], [-2.0]]))
    residual, normed = torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[1.0, -1.0]]])
    # ReLU(3 * 1 + 1) = 4, up (4, -8), halved (2, -4); with FFN and residual (3.5, -5.5).
    assert adapter(residual, normed, residual + 0.5, (("A", 1),)).tolist() == [[[3.5, -5.5]]]


@pytest.mark.parametrize("sharing", ["per_modality", "shared"])
def test_fused_input_is_adapted_segment_by_segment(sharing: Any) -> None:
    config = MultiWayConfig(bottleneck=3, enhancer_dim=5, ae_sharing=sharing)
    adapter = MultiWayAdapter(config, ("A", "B"), 8, drop_path=0.0, eps=1e-5).eval()
    randomise(adapter)
    states = torch.randn(3, 2, 7, 8).unbind(0)
    fused = adapter(*states, (("A", 4), ("B", 3)))
    parts = [
        adapter(*(s[:, :4] for s in states), (("A", 4),)),
        adapter(*(s[:, 4:] for s in states), (("B", 3),)),
    ]
    assert torch.allclose(fused, torch.cat(parts, dim=1), atol=1e-6)
    assert not torch.allclose(adapter(*states, (("A", 7),))[:, 4:], parts[1], atol=1e-3)


@pytest.mark.parametrize(
    ("mode", "overrides", "touched"),
    [
        ("vision", {}, {"A"}),
        ("text", {}, {"B"}),
        ("fused", {}, {"A", "B"}),
        ("fused", {"vl_experts": 2}, {"VL"}),
        ("vision", {"vl_experts": 2}, {"A"}),
    ],
)
def test_only_the_modalities_present_are_touched(
    make_backbone: Callable[..., BEiT3], inputs: Any, mode: str, overrides: dict[str, Any], touched: set[str]
) -> None:
    model = make_backbone(**overrides)
    inject(model, MultiWayConfig())
    randomise(model)
    model(**inputs[mode])["encoder_out"].square().sum().backward()
    for key, parameter in model.named_parameters():
        if ".adapters." in key:
            assert (parameter.grad is not None) == (
                key.split(".nke.")[-1].split(".ae.")[-1].split(".")[0] in touched
            )


def test_gradients_reach_the_adapter_alone(backbone: BEiT3, inputs: Any) -> None:
    """At first behind zeros: only the last layers move; from the second step on all parameters do."""
    inject(backbone, MultiWayConfig(learnable_alpha=True, dropout=0.0))
    optimiser = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    target = torch.randn_like(backbone(**inputs["fused"])["encoder_out"])
    moved = []
    for _ in range(2):
        optimiser.zero_grad()
        (backbone(**inputs["fused"])["encoder_out"] - target).square().mean().backward()
        assert {k for k, p in backbone.named_parameters() if p.grad is not None} == {
            k for k, _ in backbone.named_parameters() if ".adapters." in k
        }
        moved.append({k for k, p in backbone.named_parameters() if p.grad is not None and p.grad.any()})
        optimiser.step()
    adapter = {k for k, _ in backbone.named_parameters() if ".adapters." in k}
    assert moved[0] == {k for k in adapter if ".up." in k or ".fc2." in k}
    assert moved[1] == adapter


def test_drop_path_of_the_host_reaches_the_enhancer_only(make_backbone: Callable[..., BEiT3]) -> None:
    model = make_backbone(drop_path_rate=0.5)
    inject(model, MultiWayConfig(dropout=0.0))
    adapters = [layer.adapters["default"] for layer in model.encoder.layers]
    assert [adapter.drop_path.rate for adapter in adapters] == [0.0, 0.5]
    randomise(model)
    states = torch.randn(3, 64, 2, 192).unbind(0)
    outputs = adapters[1].train()(*states, (("A", 2),))
    extracted = states[2] + adapters[1].nke["A"](states[1])
    kept = (outputs - extracted).abs().amax(dim=(1, 2)) > 1e-6
    assert 10 < int(kept.sum()) < 54
