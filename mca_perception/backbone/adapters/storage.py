"""Adapters as files: safetensors of megabytes, with their settings and the hash of the backbone below them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mca_perception.backbone.adapters.config import ADAPTER_CONFIG, LoraConfig, MultiWayConfig
from mca_perception.backbone.adapters.inject import (
    DEFAULT,
    adapter_configs,
    attach,
    build_multiway,
    freeze_backbone,
    remove_adapter,
    set_adapter,
)
from mca_perception.backbone.adapters.names import PREFIX, adapter_key, plain_key
from mca_perception.errors import AdapterError

FORMAT = "mca_adapter_1"


def base_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of a backbone's own tensors; adapters leave it as it is."""
    digest = hashlib.sha256()
    own = {plain_key(key): value for key, value in model.state_dict().items() if adapter_key(key) is None}
    for key in sorted(own):
        tensor = own[key].detach().cpu().contiguous()
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def adapter_state_dict(model: nn.Module, name: str = DEFAULT) -> dict[str, Tensor]:
    """The tensors of one adapter, e.g. ``beit3.encoder.layers.3.nke.A.down.weight``.

    Raises:
        AdapterError: there is no adapter of that name.
    """
    if name not in adapter_configs(model):
        raise AdapterError(f"the backbone has no adapter {name!r}; inject or load it first")
    return {PREFIX + key: model.get_parameter(own).detach() for key, own in _keys(model, name).items()}


def _keys(model: nn.Module, name: str) -> dict[str, str]:
    """Keys of the model's parameters by the adapter's keys."""
    found = ((adapter_key(key), key) for key, _ in model.named_parameters())
    return {adapter.key: key for adapter, key in found if adapter is not None and adapter.name == name}


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor], name: str = DEFAULT) -> None:
    """Copy tensors under the keys of :func:`adapter_state_dict` into an adapter of the model.

    Raises:
        AdapterError: a tensor is missing, unexpected or of another shape; nothing is changed then.
    """
    target = adapter_state_dict(model, name)
    _check_shapes(
        {key: tuple(value.shape) for key, value in state.items()},
        {key: tuple(value.shape) for key, value in target.items()},
        f"adapter {name!r}",
    )
    with torch.no_grad():
        for key, value in state.items():
            target[key].copy_(value)


def _check_shapes(
    given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], what: str
) -> None:
    for key in sorted(given.keys() | expected.keys()):
        if given.get(key) != expected.get(key):
            raise AdapterError(
                f"{what} does not fit the backbone: {key} is {given.get(key, 'absent')} in the adapter and "
                f"{expected.get(key, 'absent')} in the model; load it into the backbone that it was made for"
            )


def save_adapter(model: nn.Module, name: str, path: str | Path) -> None:
    """Write one adapter, atomically: tensors, settings and the hash of the backbone.

    Raises:
        AdapterError: there is no adapter of that name.
    """
    path = Path(path)
    tensors = {key: value.cpu().contiguous() for key, value in adapter_state_dict(model, name).items()}
    metadata = {
        "format": FORMAT,
        "config": adapter_configs(model)[name].model_dump_json(),
        "base_sha256": base_hash(model),
    }
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata=metadata)
    temporary.replace(path)


def load_adapter(
    model: nn.Module, path: str | Path, name: str = DEFAULT, *, check_base: bool = True
) -> MultiWayConfig | LoraConfig:
    """Add an adapter from a file to a backbone, freeze the backbone, and make the adapter the active one.

    Args:
        model: the backbone that the adapter was trained on, changed in place.
        path: file of :func:`save_adapter`.
        name: to give the adapter in this model.
        check_base: refuse the file when the backbone's weights are not those that it was trained on.

    Returns:
        The adapter's settings.

    Raises:
        AdapterError: the file cannot be read or does not fit, or the name is taken; the model is unchanged then.
    """
    path = Path(path)
    config, base, tensors = _read(model, path)
    if check_base and base != (own := base_hash(model)):
        raise AdapterError(
            f"adapter {path} was trained on other backbone weights (hash {base[:12]}, here {own[:12]}): load those "
            "first, or pass check_base=False to use it all the same"
        )
    add_adapter(model, config, tensors, name)
    return config


def add_adapter(
    model: nn.Module, config: MultiWayConfig | LoraConfig, tensors: Mapping[str, Tensor], name: str
) -> None:
    """As :func:`load_adapter`, for tensors in memory."""
    attach(model, config, name)
    try:
        load_adapter_state(model, tensors, name)
    except AdapterError:
        remove_adapter(model, name)
        raise
    freeze_backbone(model)
    set_adapter(model, name)


def _read(model: nn.Module, path: Path) -> tuple[MultiWayConfig | LoraConfig, str, dict[str, Tensor]]:
    """Settings, base hash and tensors of a file, its shapes checked before anything is allocated."""
    if not path.is_file():
        raise AdapterError(f"adapter {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or not {"config", "base_sha256"} <= metadata.keys():
                raise AdapterError(
                    f"{path} is no adapter of this release (format {metadata.get('format')!r}, expected {FORMAT!r})"
                )
            config = ADAPTER_CONFIG.validate_json(metadata["config"])
            keys = list(file.keys())
            if isinstance(config, MultiWayConfig):
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
                _check_shapes(shapes, _expected_shapes(model, config), f"adapter {path}")
            return config, metadata["base_sha256"], {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, ValidationError, OSError) as error:
        raise AdapterError(f"adapter {path} cannot be read: {error}") from error


def _expected_shapes(model: nn.Module, config: MultiWayConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        adapters = build_multiway(model, config)
    return {
        f"{PREFIX}encoder.layers.{number}.{key}": tuple(parameter.shape)
        for number, adapter in adapters.items()
        for key, parameter in adapter.named_parameters()
    }
