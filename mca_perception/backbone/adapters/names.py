"""Names of parameters with and without adapters.

In a model's state dict an adapter's tensors stand under its name, and LoRA moves the layers that it wraps:

    encoder.layers.3.adapters.NAME.nke.A.down.weight        encoder.layers.3.self_attn.q_proj.A.lora_A.NAME.weight
                                                            encoder.layers.3.self_attn.q_proj.A.base_layer.weight

Files know neither: ``beit3.encoder.layers.3.nke.A.down.weight``, ``beit3.encoder.layers.3.self_attn.q_proj.A.weight``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PREFIX = "beit3."
_MULTIWAY = re.compile(
    r"^(?P<before>(?:.*\.)?layers\.\d+)\.adapters\.(?P<name>\w+)\.(?P<after>(?P<part>nke|ae)\..+)$"
)
_LORA = re.compile(r"^(?P<before>.+\.(?P<part>lora)_[AB])\.(?P<name>\w+)\.(?P<after>.+)$")


class AdapterKey(NamedTuple):
    """A parameter of an adapter.

    Attributes:
        name: of the adapter.
        part: ``nke``, ``ae`` or ``lora``.
        key: the parameter's name without the adapter's.
    """

    name: str
    part: str
    key: str


def adapter_key(key: str) -> AdapterKey | None:
    """What a key of a state dict says about an adapter; None for the model's own parameters."""
    match = _MULTIWAY.match(key) or _LORA.match(key)
    if match is None:
        return None
    return AdapterKey(match["name"], match["part"], f"{match['before']}.{match['after']}")


def plain_key(key: str) -> str:
    """A key as it is in a model without LoRA."""
    return key.replace(".base_layer.", ".")
