"""What a head may rely on, whichever backbone it stands on."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mca_perception.errors import BackboneError


class Normalisation(NamedTuple):
    """Mean and standard deviation per RGB channel, for pixel values in 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Backbone(nn.Module):
    """An encoder of images, texts or pairs; the base of everything that the registry creates.

    Attributes:
        embed_dim: width ``D`` of an image token.
        patch_size: side of a patch in pixels.
        img_size: side in pixels of the square image that its position table was made for.
        modalities: what it reads, out of ``vision`` and ``text``.
        normalisation: of the images it expects.
    """

    embed_dim: int
    patch_size: int
    img_size: int
    modalities: tuple[str, ...]
    normalisation: Normalisation

    @abstractmethod
    def forward(
        self,
        images: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_padding_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Encode images, texts, or pairs of both.

        Args:
            images: ``[N, 3, H, W]`` normalised RGB; H and W are multiples of the patch size.
            text_ids: ``[N, L]`` int64.
            text_padding_mask: ``[N, L]`` bool, True at padding.

        Returns:
            ``encoder_out``: ``[N, L, D]`` states, image tokens first (CLS, then patches in row-major order), then
            text tokens.

        Raises:
            BackboneError: the input has the wrong shape, or the backbone has no such mode.
        """


class NoBackbone(Backbone):
    """Stands in for the shared backbone where a model brings encoders of its own; has no parameters."""

    embed_dim, patch_size, img_size = 0, 1, 0
    modalities = ()
    normalisation = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def forward(
        self,
        images: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_padding_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Refuse to encode anything.

        Raises:
            BackboneError: always.
        """
        raise BackboneError("this model was made without a backbone: set backbone.name in its recipe")


def normalise(images: Tensor, device: torch.device, normalisation: Normalisation) -> Tensor:
    """uint8 ``[N, 3, H, W]`` RGB to float32 as ``normalisation`` says."""
    scale = torch.tensor([1 / (255 * std) for std in normalisation.std], device=device).view(1, 3, 1, 1)
    shift = torch.tensor(
        [-mean / std for mean, std in zip(normalisation.mean, normalisation.std, strict=True)], device=device
    )
    return images.to(device, non_blocking=True).float().mul_(scale).add_(shift.view(1, 3, 1, 1))
