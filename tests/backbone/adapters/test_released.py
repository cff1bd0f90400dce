"""Import of adapters of the released code: exchanged names, shared wide enhancer, a scale that is not in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mca_perception.backbone import BEiT3
from mca_perception.backbone.adapters import (
    AdapterError,
    adapter_configs,
    adapter_state_dict,
    import_released,
)

BOTTLENECK, WIDTH, FFN, DEPTH = 5, 192, 768, 2


def released(prefix: str = "beit3.", *, norm: bool = False, scale: bool = False) -> dict[str, Tensor]:
    """Adapters under the released key names, beside a weight of the backbone and a head."""
    generator = torch.Generator().manual_seed(5)

    def tensor(*shape: int) -> Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    tensors = {
        f"{prefix}encoder.layers.0.ffn.A.fc1.bias": tensor(FFN),
        "vision_head.weight": tensor(WIDTH, WIDTH),
    }
    for number in range(DEPTH):
        layer = f"{prefix}encoder.layers.{number}."
        for module in ("adaptmlp_text", "adaptmlp_vision"):
            tensors[f"{layer}{module}.down_proj.weight"] = tensor(BOTTLENECK, WIDTH)
            tensors[f"{layer}{module}.down_proj.bias"] = tensor(BOTTLENECK)
            tensors[f"{layer}{module}.up_proj.weight"] = tensor(WIDTH, BOTTLENECK)
            tensors[f"{layer}{module}.up_proj.bias"] = tensor(WIDTH)
            if norm:
                tensors[f"{layer}{module}.adapter_layer_norm_before.weight"] = tensor(WIDTH)
                tensors[f"{layer}{module}.adapter_layer_norm_before.bias"] = tensor(WIDTH)
            if scale:
                tensors[f"{layer}{module}.scale"] = tensor(1)
        tensors |= {
            f"{layer}enhancemlp.fc1.weight": tensor(FFN, WIDTH),
            f"{layer}enhancemlp.fc1.bias": tensor(FFN),
            f"{layer}enhancemlp.fc2.weight": tensor(WIDTH, FFN),
            f"{layer}enhancemlp.fc2.bias": tensor(WIDTH),
            f"{layer}enhancemlp.ffn_layernorm.weight": tensor(FFN),
            f"{layer}enhancemlp.ffn_layernorm.bias": tensor(FFN),
        }
    return tensors


def released_block(
    tensors: dict[str, Tensor], module: str, residual: Tensor, ffn: Tensor, alpha: float
) -> Tensor:
    """Block 1 of the released code behind its attention: specification of the adapter, sections 2.2 and 2.3."""
    part = {key.split("layers.1.")[1]: value for key, value in tensors.items() if "layers.1." in key}
    down = torch.relu(
        F.linear(residual, part[f"{module}.down_proj.weight"], part[f"{module}.down_proj.bias"])
    )
    up = F.linear(down, part[f"{module}.up_proj.weight"], part[f"{module}.up_proj.bias"])
    h = residual + ffn + alpha * up
    hidden = F.gelu(F.linear(h, part["enhancemlp.fc1.weight"], part["enhancemlp.fc1.bias"]))
    norm = part["enhancemlp.ffn_layernorm.weight"], part["enhancemlp.ffn_layernorm.bias"]
    hidden = F.layer_norm(hidden, (FFN,), *norm)
    return h + F.linear(hidden, part["enhancemlp.fc2.weight"], part["enhancemlp.fc2.bias"])


@pytest.mark.parametrize(("expert", "module"), [("A", "adaptmlp_text"), ("B", "adaptmlp_vision")])
def test_block_computes_what_the_released_one_does(
    backbone: BEiT3, tmp_path: Path, expert: str, module: str
) -> None:
    """Images take what the released code calls text, and the other way round."""
    torch.save({"model": released()}, tmp_path / "released.pth")
    config = import_released(backbone, tmp_path / "released.pth", alpha=0.6)
    assert (config.bottleneck, config.enhancer_dim, config.alpha) == (BOTTLENECK, FFN, 0.6)
    assert (config.nke_norm, config.ae_sharing, config.blocks) == ("none", "shared", (0, 1))
    residual, normed, ffn = torch.randn(3, 2, 6, WIDTH).unbind(0)
    adapter = backbone.encoder.layers[1].adapters["default"]
    expected = released_block(released(), module, residual, ffn, 0.6)
    assert torch.allclose(adapter(residual, normed, residual + ffn, ((expert, 6),)), expected, atol=1e-4)


@pytest.mark.parametrize("prefix", ["beit3.", "", "module.beit3."])
def test_norms_and_learned_scales(backbone: BEiT3, tmp_path: Path, prefix: str) -> None:
    save_file(released(prefix, norm=True, scale=True), tmp_path / "released.safetensors")
    config = import_released(
        backbone, tmp_path / "released.safetensors", "r", alpha=1.0, layer_norm_option="in"
    )
    assert config.nke_norm == "own"
    assert config.learnable_alpha
    state, source = adapter_state_dict(backbone, "r"), released(norm=True, scale=True)
    assert state["beit3.encoder.layers.0.nke.A.alpha"] == source["beit3.encoder.layers.0.adaptmlp_text.scale"]
    assert torch.equal(
        state["beit3.encoder.layers.1.nke.B.norm.weight"],
        source["beit3.encoder.layers.1.adaptmlp_vision.adapter_layer_norm_before.weight"],
    )


def test_backbone_of_one_modality_takes_its_part(make_backbone: Callable[..., BEiT3], tmp_path: Path) -> None:
    save_file(released(), tmp_path / "released.safetensors")
    model = make_backbone(modalities=("vision",))
    import_released(model, tmp_path / "released.safetensors", alpha=0.6)
    assert not any(".nke.B." in key for key in adapter_state_dict(model))
    before = make_backbone(modalities=("vision",)).state_dict()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ({"vision_head.weight": torch.zeros(2, 2)}, {}, "holds no adapter of the released code"),
        (released(norm=True), {}, "LayerNorms of the adapter.*'out' cannot"),
        (released(), {"layer_norm_option": "in"}, "does not hold LayerNorms"),
        ({k.replace("layers.1", "layers.7"): v for k, v in released().items()}, {}, "has 2 blocks"),
        ({k: v for k, v in released().items() if "1.adaptmlp_text.up" not in k}, {}, "layers.1.nke.A.up"),
        ({**released(), "beit3.encoder.layers.0.enhancemlp.extra": torch.zeros(1)}, {}, "ae.shared.extra"),
        ({k: v[..., :-1] for k, v in released().items()}, {}, "does not fit the backbone"),
    ],
    ids=["none", "norm", "no norm", "depth", "missing", "unexpected", "shape"],
)
def test_what_does_not_fit_is_refused(
    backbone: BEiT3, tmp_path: Path, tensors: dict[str, Tensor], options: Any, message: str
) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match=message):
        import_released(backbone, tmp_path / "x.safetensors", alpha=0.6, **options)
    assert adapter_configs(backbone) == {}
