"""Checks of what every backbone takes."""

from __future__ import annotations

from torch import Tensor

from mca_perception.errors import BackboneError


def image_grid(images: Tensor, patch_size: int) -> tuple[int, int]:
    """Check a batch of images and return its grid of patches.

    Args:
        images: should be ``[N, 3, H, W]``.
        patch_size: side of a patch in pixels.

    Returns:
        (rows, columns).

    Raises:
        BackboneError: another shape, or a side is no multiple of the patch size.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise BackboneError(f"images must be [N, 3, H, W], got shape {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise BackboneError(
            f"image size {height}x{width} is not a multiple of the patch size {patch_size}: resize or pad it"
        )
    return height // patch_size, width // patch_size


def check_texts(text_ids: Tensor, padding_mask: Tensor | None, longest: int) -> None:
    """Check a batch of texts.

    Args:
        text_ids: should be ``[N, L]``.
        padding_mask: should be None or ``[N, L]``.
        longest: largest L.

    Raises:
        BackboneError: another shape, or the texts are too long.
    """
    if text_ids.ndim != 2 or (padding_mask is not None and padding_mask.shape != text_ids.shape):
        mask_shape = None if padding_mask is None else tuple(padding_mask.shape)
        raise BackboneError(
            f"text_ids and text_padding_mask must be [N, L], got {tuple(text_ids.shape)} and {mask_shape}"
        )
    if text_ids.shape[1] > longest:
        raise BackboneError(
            f"texts of {text_ids.shape[1]} tokens exceed the limit of {longest}: truncate them"
        )
