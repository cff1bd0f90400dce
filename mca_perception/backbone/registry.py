"""Create a backbone by name."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from mca_perception.backbone.beit3 import BEiT3
from mca_perception.backbone.config import CONFIGS, BackboneConfig, restrict
from mca_perception.backbone.protocol import Backbone
from mca_perception.errors import BackboneError

PREFIXES = ("timm", "clip", "open_clip")


def list_backbones() -> list[str]:
    """Names of the Multiway Transformers; ``timm:NAME``, ``clip:FOLDER`` and ``open_clip:NAME`` come on top."""
    return list(CONFIGS)


def create_backbone(
    name: str, *, img_size: int = 224, modalities: tuple[str, ...] = ("vision",), **overrides: Any
) -> Backbone:
    """Build a backbone with fresh weights (``clip:FOLDER`` with the folder's).

    Args:
        name: one of :func:`list_backbones`, ``timm:NAME`` for a plain ViT of timm, ``clip:FOLDER`` for a CLIP model in
            transformers' format, ``open_clip:NAME`` for one of open_clip's architectures.
        img_size: side in pixels of the square image whose patch grid the position table stores; other sizes are
            served by bicubic interpolation.
        modalities: what to build out of ``vision`` and ``text``.
        overrides: any other field of :class:`~mca_perception.backbone.config.BackboneConfig`, or an argument of the
            foreign library.

    Raises:
        BackboneError: unknown name or field, a value that does not fit, or a modality the backbone does not have.
    """
    prefix, separator, rest = name.partition(":")
    if separator and prefix in PREFIXES:
        return _create_foreign(prefix, rest, img_size=img_size, modalities=modalities, **overrides)
    return create_beit3(name, img_size=img_size, modalities=modalities, **overrides)


def create_beit3(
    name: str, *, img_size: int = 224, modalities: tuple[str, ...] = ("vision",), **overrides: Any
) -> BEiT3:
    """The same for the names of :func:`list_backbones` only, with the type to match."""
    if name not in CONFIGS:
        raise BackboneError(
            f"unknown backbone {name!r}; available: {', '.join(list_backbones())}, timm:NAME, clip:FOLDER, "
            "open_clip:NAME"
        )
    known = {field.name for field in fields(BackboneConfig)}
    if unknown := sorted(set(overrides) - known):
        raise BackboneError(
            f"backbone {name}: unknown settings {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    try:
        config = restrict(CONFIGS[name], tuple(modalities))
        return BEiT3(replace(config, img_size=img_size, **overrides))
    except ValueError as error:
        raise BackboneError(f"backbone {name}: {error}") from error


def _create_foreign(
    prefix: str, name: str, *, img_size: int, modalities: tuple[str, ...], **overrides: Any
) -> Backbone:
    if prefix == "timm":
        if modalities != ("vision",):
            raise BackboneError(
                f"timm:{name} reads images only: modalities must be ('vision',), not {modalities}"
            )
        from mca_perception.backbone.timm_vit import create_timm

        return create_timm(name, img_size=img_size, **overrides)
    from mca_perception.backbone.clip import create_clip, create_open_clip

    create = create_clip if prefix == "clip" else create_open_clip
    return create(name, img_size=img_size, modalities=modalities, **overrides)
