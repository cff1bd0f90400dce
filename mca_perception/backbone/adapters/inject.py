"""Put adapters into a backbone, choose the active one, and report what trains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from mca_perception.backbone.adapters.config import LoraConfig, MultiWayConfig
from mca_perception.backbone.adapters.lora import activate_lora, attach_lora, detach_lora
from mca_perception.backbone.adapters.multiway import MultiWayAdapter
from mca_perception.backbone.adapters.names import adapter_key
from mca_perception.backbone.beit3 import BEiT3
from mca_perception.backbone.blocks import EncoderLayer
from mca_perception.errors import AdapterError

DEFAULT = "default"
_REGISTRY = "adapter_registry"


@dataclass
class _Registry:
    """The adapters of one backbone."""

    configs: dict[str, MultiWayConfig | LoraConfig] = field(default_factory=dict)
    active: str | None = None


def _registry(model: nn.Module) -> _Registry:
    registry: object = getattr(model, _REGISTRY, None)
    return registry if isinstance(registry, _Registry) else _Registry()


def adapter_configs(model: nn.Module) -> dict[str, MultiWayConfig | LoraConfig]:
    """Settings of the backbone's adapters by name."""
    return dict(_registry(model).configs)


def active_adapter(model: nn.Module) -> str | None:
    """Name of the adapter in use; None for the original model."""
    return _registry(model).active


def inject(model: nn.Module, config: MultiWayConfig | LoraConfig, name: str = DEFAULT) -> nn.Module:
    """Give a backbone a fresh adapter, freeze the backbone, and make the adapter the active one.

    Earlier adapters stay, and stay trainable: one that is not active gets no gradient. Heads are no part of a
    backbone and train as before.

    Args:
        model: a backbone, changed in place.
        config: kind and settings; a MultiWay-Adapter needs a Multiway Transformer.
        name: of the adapter.

    Returns:
        ``model``.

    Raises:
        AdapterError: the name is taken or not usable, the settings do not fit the model, or LoRA's library is missing.
    """
    attach(model, config, name)
    freeze_backbone(model)
    set_adapter(model, name)
    return model


def attach(model: nn.Module, config: MultiWayConfig | LoraConfig, name: str) -> None:
    """Add an adapter without freezing or activating anything; errors as :func:`inject`."""
    registry = _registry(model)
    if name in registry.configs:
        raise AdapterError(
            f"the backbone has an adapter {name!r} already; remove it first, or choose another name"
        )
    if not re.fullmatch(r"[A-Za-z]\w{0,63}", name, re.ASCII) or hasattr(nn.ModuleDict, name):
        raise AdapterError(
            f"adapter name {name!r} is not usable: up to 64 letters, digits and '_', and no word of torch's own"
        )
    if isinstance(config, LoraConfig):
        attach_lora(model, config, name)
        activate_lora(model, None)
    else:
        for number, adapter in build_multiway(model, config).items():
            layer = _layers(model)[number]
            parameter = next(layer.parameters())
            layer.adapters[name] = adapter.to(parameter.device, parameter.dtype).train(layer.training)
    registry.configs[name] = config
    setattr(model, _REGISTRY, registry)


def build_multiway(model: nn.Module, config: MultiWayConfig) -> dict[int, MultiWayAdapter]:
    """The modules that ``config`` asks for, by number of the block, not yet part of the model.

    Raises:
        AdapterError: the model is no Multiway Transformer, or has no such block.
    """
    if not isinstance(model, BEiT3):
        raise AdapterError(
            f"a MultiWay-Adapter does not fit {type(model).__name__}: it needs a Multiway Transformer (beit3_*, "
            "vlmo_*); adapter 'lora' fits any backbone"
        )
    layers = _layers(model)
    numbers = range(len(layers)) if config.blocks == "all" else config.blocks
    if max(numbers) >= len(layers):
        raise AdapterError(
            f"adapter blocks {config.blocks}: the backbone has {len(layers)} blocks, number them 0 to {len(layers) - 1}"
        )
    host = model.config
    return {
        number: MultiWayAdapter(
            config,
            layers[number].experts,
            host.embed_dim,
            drop_path=layers[number].drop_path.rate,
            eps=host.layer_norm_eps,
        )
        for number in numbers
    }


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take an adapter out of a backbone; the original model is active afterwards if it was in use.

    Raises:
        AdapterError: there is no adapter of that name.
    """
    registry = _registry(model)
    config = _known(registry, name)
    if registry.active == name:
        set_adapter(model, None)
    if isinstance(config, LoraConfig):
        detach_lora(model, name)
    for layer in _layers(model):
        if name in layer.adapters:
            del layer.adapters[name]
    del registry.configs[name]


def set_adapter(model: nn.Module, name: str | None) -> None:
    """Use the adapter called ``name``, or with None the original model. Touches no tensor.

    With gradient checkpointing the backward pass runs blocks again: switch after it, not before.

    Raises:
        AdapterError: there is no adapter of that name.
    """
    registry = _registry(model)
    if name is not None:
        _known(registry, name)
    for layer in _layers(model):
        layer.active_adapter = name if name is not None and name in layer.adapters else None
    if any(isinstance(config, LoraConfig) for config in registry.configs.values()):
        activate_lora(model, name if isinstance(registry.configs.get(name or ""), LoraConfig) else None)
    registry.active = name


@contextmanager
def use_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Use an adapter (or None) inside a ``with`` block, and the earlier one again after it."""
    earlier = active_adapter(model)
    set_adapter(model, name)
    try:
        yield
    finally:
        set_adapter(model, earlier)


def _known(registry: _Registry, name: str) -> MultiWayConfig | LoraConfig:
    if name not in registry.configs:
        known = ", ".join(sorted(registry.configs)) or "none"
        raise AdapterError(f"the backbone has no adapter {name!r} (it has: {known}); inject or load it first")
    return registry.configs[name]


def _layers(model: nn.Module) -> list[EncoderLayer]:
    return [module for module in model.modules() if isinstance(module, EncoderLayer)]


def freeze_backbone(model: nn.Module) -> None:
    """Stop training every parameter that is not an adapter's. Drop path keeps following the training mode."""
    for key, parameter in model.named_parameters():
        if adapter_key(key) is None:
            parameter.requires_grad_(False)


@dataclass(frozen=True)
class TrainableReport:
    """How many parameters train.

    Attributes:
        trainable: parameters that train.
        total: all parameters.
        adapters: those of adapters, trainable or not.
        per_module: trainable and all parameters by part: the model's own modules, then every adapter's.
    """

    trainable: int
    total: int
    adapters: int
    per_module: dict[str, tuple[int, int]]

    @property
    def percent(self) -> float:
        """Trainable parameters relative to the model without adapters, which is what full fine-tuning trains."""
        return 100.0 * self.trainable / max(1, self.total - self.adapters)

    def __str__(self) -> str:
        parts = "; ".join(
            f"{name} {train:,} of {total:,}" for name, (train, total) in self.per_module.items()
        )
        return (
            f"trains {self.trainable:,} parameters, {self.percent:.2f} % of the {self.total - self.adapters:,} "
            f"without adapters ({parts})"
        )


def trainable_report(model: nn.Module) -> TrainableReport:
    """Count the trainable parameters of a model (a backbone, or one with heads)."""
    own: dict[str, tuple[int, int]] = {}
    adapters: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        found = adapter_key(name)
        part, table = (
            (name.partition(".")[0], own) if found is None else (f"{found.name}.{found.part}", adapters)
        )
        trained, total = table.get(part, (0, 0))
        size = parameter.numel()
        table[part] = (trained + size * parameter.requires_grad, total + size)
    counts = [*own.values(), *adapters.values()]
    return TrainableReport(
        trainable=sum(trained for trained, _ in counts),
        total=sum(total for _, total in counts),
        adapters=sum(total for _, total in adapters.values()),
        per_module={**own, **{f"adapter {name}": count for name, count in adapters.items()}},
    )
