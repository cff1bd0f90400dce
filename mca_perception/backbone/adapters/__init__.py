"""Adapters: small trained modules on a frozen backbone, several of them side by side, switched at run time."""

from mca_perception.backbone.adapters.config import AdapterConfig, LoraConfig, MultiWayConfig
from mca_perception.backbone.adapters.inject import (
    TrainableReport,
    active_adapter,
    adapter_configs,
    freeze_backbone,
    inject,
    remove_adapter,
    set_adapter,
    trainable_report,
    use_adapter,
)
from mca_perception.backbone.adapters.names import plain_key
from mca_perception.backbone.adapters.released import import_released
from mca_perception.backbone.adapters.storage import (
    adapter_state_dict,
    base_hash,
    load_adapter,
    load_adapter_state,
    save_adapter,
)
from mca_perception.errors import AdapterError

__all__ = [
    "AdapterConfig",
    "AdapterError",
    "LoraConfig",
    "MultiWayConfig",
    "TrainableReport",
    "active_adapter",
    "adapter_configs",
    "adapter_state_dict",
    "base_hash",
    "freeze_backbone",
    "import_released",
    "inject",
    "load_adapter",
    "load_adapter_state",
    "plain_key",
    "remove_adapter",
    "save_adapter",
    "set_adapter",
    "trainable_report",
    "use_adapter",
]
