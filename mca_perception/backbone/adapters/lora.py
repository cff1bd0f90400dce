"""LoRA through the ``peft`` library, imported when it is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mca_perception.backbone.adapters.config import LoraConfig
from mca_perception.backbone.adapters.names import adapter_key
from mca_perception.backbone.blocks import FUSED, SHARED, TEXT, VISION
from mca_perception.errors import AdapterError

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

EXPERTS = (VISION, TEXT, FUSED, SHARED)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise AdapterError(
            "adapter 'lora' needs the peft library; install it: pip install 'mca_perception[lora]'"
        ) from error
    return peft


def attach_lora(model: nn.Module, config: LoraConfig, name: str) -> None:
    """Wrap the target layers; other parameters keep their ``requires_grad``.

    Raises:
        AdapterError: peft is not installed, or the model has no layer of such a name.
    """
    peft = _peft()
    linear = _linear_layers(model)
    chosen = [key for key, target in linear.items() if target in config.targets]
    if not chosen:
        raise AdapterError(
            f"adapter {name!r}: no linear layer is named {', '.join(config.targets)}; "
            f"there are {', '.join(sorted(set(linear.values())))}"
        )
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=chosen,
        bias="none",
    )
    with _requires_grad_kept(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
        peft.inject_adapter_in_model(settings, model, adapter_name=name)


def _linear_layers(model: nn.Module) -> dict[str, str]:
    """The model's own linear layers, wrapped or not: full name, and its part that says what the layer does.

    torch's MultiheadAttention reads the weight of its output layer without calling it: an update would have no effect.
    """
    layers = {}
    for key, module in model.named_modules():
        called = isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
        if called and adapter_key(f"{key}.weight") is None:
            parts = key.removesuffix(".base_layer").split(".")
            layers[".".join(parts)] = parts[-2] if parts[-1] in EXPERTS and len(parts) > 1 else parts[-1]
    return layers


def activate_lora(model: nn.Module, name: str | None) -> None:
    """Use the low-rank updates called ``name`` in all wrapped layers; None uses none."""
    with _requires_grad_kept(model):
        for layer in _lora_layers(model):
            if name is not None:
                layer.set_adapter(name)
            layer.enable_adapters(name is not None)


def detach_lora(model: nn.Module, name: str) -> None:
    """Remove the updates called ``name``; the wrapped layers stay and compute what they did before."""
    with _requires_grad_kept(model):
        for layer in _lora_layers(model):
            layer.delete_adapter(name)
    settings: Any = getattr(model, "peft_config", {})
    settings.pop(name, None)


def _lora_layers(model: nn.Module) -> list[LoraLayer]:
    _peft()
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


@contextmanager
def _requires_grad_kept(model: nn.Module) -> Iterator[None]:
    """Undo what peft does to ``requires_grad`` of parameters that exist already: which ones train is ours to say."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
