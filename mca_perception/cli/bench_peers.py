"""Other libraries' BEiT-3 and Mask R-CNN, with random weights, for benchmarks; and ours beside them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "BUILDERS",
    "NAME",
    "build_ours",
    "build_timm",
    "build_torchscale",
    "features",
    "installed",
    "why_not",
]

NAME = "beit3_base_patch16"


def build_ours(img_size: int, **overrides: Any) -> nn.Module:
    """Our vision-only base model."""
    from mca_perception.backbone import create_backbone

    return create_backbone(NAME, img_size=img_size, **overrides)


def build_timm(img_size: int) -> nn.Module:
    """Timm's BEiT-3 base."""
    import timm

    model: nn.Module = timm.create_model("beit3_base_patch16_224", num_classes=0, img_size=img_size)
    return model


def build_torchscale(img_size: int) -> nn.Module:
    """Torchscale's BEiT-3 base, without the text expert's weights in use."""
    from torchscale.architecture.config import EncoderConfig
    from torchscale.model.BEiT3 import BEiT3

    settings = EncoderConfig(
        img_size=img_size,
        patch_size=16,
        vocab_size=64010,
        multiway=True,
        layernorm_embedding=False,
        normalize_output=True,
        no_output_layer=True,
        encoder_embed_dim=768,
        encoder_attention_heads=12,
        encoder_ffn_embed_dim=3072,
        encoder_layers=12,
        max_source_positions=1024,
    )
    model: nn.Module = BEiT3(settings)
    return model


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Token states ``[N, 1 + T, D]`` of any of the three."""
    library = type(model).__module__.partition(".")[0]
    found: Tensor
    if library == "timm":
        found = model.forward_features(images)  # type: ignore[operator]
    elif library == "torchscale":
        found = model(None, images)["encoder_out"]
    else:
        found = model(images)["encoder_out"]
    return found


BUILDERS: dict[str, Callable[[int], Any]] = {
    "ours": build_ours,
    "timm": build_timm,
    "torchscale": build_torchscale,
}

_MODULES = {
    "torchvision-maskrcnn": "torchvision",
    "torch-eager": "torch",
    "torch-compile": "torch",
    "ours": "torch",
}


def why_not(name: str) -> str | None:
    """Why a peer cannot be run here; None when it can."""
    module = _MODULES.get(name, name)
    if find_spec(module) is None:
        return f"{module} is not installed"
    try:
        __import__(module)
    except Exception as error:  # a library that is there but does not load, for any reason
        return f"{module} does not load: {error}"
    compiler = os.environ.get("CXX", "g++")
    if name == "torch-compile" and shutil.which(compiler) is None:
        return f"torch compiles with {compiler}, which is not installed"
    return None


def installed() -> dict[str, Callable[[int], Any]]:
    """The builders whose library can be imported; says which are left out."""
    found = {}
    for name, builder in BUILDERS.items():
        reason = why_not(name)
        if reason:
            print(f"{name} is left out: {reason}")
        else:
            found[name] = builder
    return found
