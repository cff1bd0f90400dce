"""Devices, precision and floating-point mode."""

from __future__ import annotations

import pytest
import torch

from mca_perception.training.hardware import (
    describe_device,
    flushed_denormals,
    select_device,
    uses_bfloat16,
)

CPU = torch.device("cpu")


def test_denormals_are_zero_inside_only() -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormal numbers")
    tiny = torch.tensor([1e-39])
    with flushed_denormals():
        assert (tiny * 1).item() == 0
    assert (tiny * 1).item() > 0


@pytest.mark.parametrize(("precision", "expected"), [("fp32", False), ("bf16", True)])
def test_named_precision_is_taken(precision: str, expected: bool) -> None:
    assert uses_bfloat16(precision, CPU) is expected


def test_cpu_is_chosen_and_described() -> None:
    assert select_device("cpu") == CPU
    assert describe_device(CPU).endswith("threads")
