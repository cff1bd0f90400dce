"""What backbones of two towers share, which meet in their loss only, as CLIP does (specification, section 10, I-7).

It reads images or texts, never a fused pair. Its texts need its own tokenizer, and its towers may differ in width.

Position 0 of a text stands for the whole text in every backbone. CLIP's attention is causal, so the state of its
start token is the same for all texts, and the state of the end token is what it is trained on: that one is put in the
start token's place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mca_perception.backbone.inputs import check_texts, image_grid
from mca_perception.backbone.protocol import Backbone, Normalisation
from mca_perception.errors import BackboneError

MODALITIES = ("vision", "text")


class DualEncoder(Backbone):
    """Two towers that read images and texts apart.

    Attributes:
        name: what the user calls the model.
        embed_dim: width of an image token; of a text token where there is no vision tower.
        text_embed_dim: width of a text token, None without a text tower.
        max_text_length: longest text in tokens.
        end_id: id of the token that ends a text; None where it is the highest id of the text.
    """

    def __init__(
        self,
        name: str,
        vision: nn.Module | None,
        text: nn.Module | None,
        *,
        widths: tuple[int, int],
        patch_size: int,
        img_size: int,
        max_text_length: int,
        end_id: int | None,
        normalisation: Normalisation,
    ) -> None:
        super().__init__()
        self.name = name
        self.vision: Any = vision
        self.text: Any = text
        self.modalities = tuple(
            modality for modality, tower in zip(MODALITIES, (vision, text), strict=True) if tower is not None
        )
        self.embed_dim = widths[0] if vision is not None else widths[1]
        self.text_embed_dim = widths[1] if text is not None else None
        self.patch_size, self.img_size = patch_size, img_size
        self.max_text_length, self.end_id = max_text_length, end_id
        self.normalisation = normalisation

    def forward(
        self,
        images: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_padding_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Encode images or texts.

        Args:
            images: ``[N, 3, H, W]`` normalised RGB; H and W are multiples of the patch size.
            text_ids: ``[N, L]`` int64 of CLIP's own tokenizer, from its start to its end token, padded at the end.
            text_padding_mask: ``[N, L]`` bool, True at padding.

        Returns:
            ``encoder_out``: for images ``[N, 1 + T, D]``, CLS first, then ``T = H/patch * W/patch`` patches in
            row-major order, all after the final LayerNorm; for texts ``[N, L, text_embed_dim]``, the state of the end
            token first, then those of the second to the last token.

        Raises:
            BackboneError: no input, both inputs, one that the model has no tower for, or one of the wrong shape.
        """
        if images is not None and text_ids is not None:
            raise BackboneError(
                f"{self.name} has no fused mode: encode images and texts apart, or take a BEiT-3"
            )
        if images is not None:
            self._require("vision")
            return {"encoder_out": self._encode_images(images, image_grid(images, self.patch_size))}
        if text_ids is None:
            raise BackboneError(f"{self.name} got no input: pass images or text_ids")
        self._require("text")
        check_texts(text_ids, text_padding_mask, self.max_text_length)
        states = self._encode_texts(text_ids, text_padding_mask)
        end = self._end_of_text(text_ids, text_padding_mask)
        summary = states[torch.arange(len(states), device=states.device), end]
        return {"encoder_out": torch.cat([summary.unsqueeze(1), states[:, 1:]], dim=1)}

    def _require(self, modality: str) -> None:
        if modality not in self.modalities:
            raise BackboneError(
                f"{self.name} was created for {self.modalities}: create it with modalities=('vision', 'text')"
            )

    def _end_of_text(self, text_ids: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Position ``[N]`` of the last token that is no padding, or without a mask of the first end token."""
        if padding_mask is not None:
            return (~padding_mask).sum(dim=1) - 1
        return (text_ids if self.end_id is None else (text_ids == self.end_id).int()).argmax(dim=1)

    @abstractmethod
    def _encode_images(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """States ``[N, 1 + T, D]``."""

    @abstractmethod
    def _encode_texts(self, text_ids: Tensor, padding_mask: Tensor | None) -> Tensor:
        """States ``[N, L, D]``, token by token."""


def check_modalities(modalities: Sequence[str]) -> None:
    """Refuse anything but a choice of `MODALITIES`.

    Raises:
        BackboneError: there is none, or an unknown one.
    """
    if not modalities or not set(modalities) <= set(MODALITIES):
        raise BackboneError(f"modalities {tuple(modalities)!r} are not a choice of {MODALITIES}")
