"""What a run computes on: device, precision, floating-point mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def select_device(name: str) -> torch.device:
    """``auto`` is the GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """``auto`` computes in bfloat16 where the hardware has it: emulated, it is several times slower than float32."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def describe_device(device: torch.device) -> str:
    """Name of the hardware, for logs and model cards."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name", "CPU") if device.type == "cpu" else device.type
    return f"{name}, {torch.get_num_threads()} threads"


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Count numbers too small for full precision as zero: a CPU is many times slower on them, and training needs none.

    Threads that the process starts inside inherit it; processors without such a mode go on as they are.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
