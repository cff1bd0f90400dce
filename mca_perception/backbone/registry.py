"""Create a backbone by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mca_perception.backbone.beit3 import BEiT3
from mca_perception.backbone.config import CONFIGS


def list_backbones() -> list[str]:
    """Names that :func:`create_backbone` accepts, smallest first."""
    return list(CONFIGS)


def create_backbone(name: str, *, img_size: int = 224, **overrides: Any) -> BEiT3:
    """Build a backbone with fresh weights.

    Args:
        name: one of :func:`list_backbones`.
        img_size: side in pixels of the square image whose patch grid the position table stores; other sizes are
            served by bicubic interpolation.
        overrides: any other field of :class:`~mca_perception.backbone.config.BackboneConfig`.

    Raises:
        ValueError: unknown name, or a field that does not fit.
        TypeError: unknown field.
    """
    if name not in CONFIGS:
        raise ValueError(f"unknown backbone {name!r}; available: {', '.join(list_backbones())}")
    return BEiT3(replace(CONFIGS[name], img_size=img_size, **overrides))
