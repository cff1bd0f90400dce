"""A neural crisis model: encoders, and a head on one modality or a fusion of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from mca_perception.backbone import Backbone, normalise
from mca_perception.crisis.networks.encoders import ImageEncoder, TextEncoder, TextInputs
from mca_perception.crisis.networks.fusion import FUSIONS, MissingModalities
from mca_perception.crisis.networks.heads import create_head
from mca_perception.errors import RecipeError

__all__ = ["CrisisInputs", "CrisisModel"]

Given = TypeVar("Given")


@dataclass(frozen=True)
class CrisisInputs:
    """Posts as a model reads them.

    Attributes:
        text: of every post, or None for a model without text; rows of posts without text have no meaning.
        images: ``[N, 3, S, S]`` uint8 RGB, or None for a model without images; likewise.
        present: ``[N]`` bool by modality: what a post has.
    """

    text: TextInputs | None
    images: Tensor | None
    present: Mapping[str, Tensor]

    def to(self, device: torch.device) -> CrisisInputs:
        """The same on a device."""
        text = None if self.text is None else TextInputs(*(part.to(device) for part in self.text))
        images = None if self.images is None else self.images.to(device, non_blocking=True)
        return CrisisInputs(text, images, {name: mask.to(device) for name, mask in self.present.items()})


class CrisisModel(nn.Module):
    """Text, images or both to logits; an encoder that is None is the shared backbone, given at every call.

    Args:
        classes: number of outputs.
        widths: width of the vector of each modality that the model reads, text first.
        text_encoder: or None.
        image_encoder: or None.
        text_head: name of the head of a model of text alone.
        text_length: tokens of a text.
        fusion: ``dense`` or ``conv``.
        joint: also use the backbone's state of text and image read together.
        modality_dropout: see :class:`MissingModalities`.
    """

    def __init__(
        self,
        classes: int,
        widths: Mapping[str, int],
        *,
        text_encoder: TextEncoder | None = None,
        image_encoder: ImageEncoder | None = None,
        text_head: str = "dense_3",
        text_length: int = 1,
        fusion: str = "dense",
        joint: bool = False,
        modality_dropout: float = 0.15,
    ) -> None:
        super().__init__()
        self.text_encoder, self.image_encoder = text_encoder, image_encoder
        self.modalities = tuple(widths)
        self.joint = joint
        self.missing: MissingModalities | None = None
        if len(widths) == 1:
            (modality,) = widths
            name, length = (text_head, text_length) if modality == "text" else ("image_dense_1", 1)
            self.head = create_head(name, widths[modality], classes, length)
            return
        vectors = {**widths, "joint": widths["text"]} if joint else dict(widths)
        self.missing = MissingModalities(vectors, modality_dropout)
        self.head = FUSIONS[fusion](list(vectors.values()), classes)

    def forward(self, backbone: Backbone, inputs: CrisisInputs) -> Tensor:
        """Logits ``[N, C]``.

        Raises:
            RecipeError: a model of one modality is given posts without it.
        """
        if self.missing is None:
            (modality,) = self.modalities
            if not bool(inputs.present[modality].all()):
                raise RecipeError(
                    f"a model of {modality} alone got posts without: leave them out, or train a fusion"
                )
            return self.head(self._states(modality, backbone, inputs))
        vectors = {name: self._states(name, backbone, inputs)[:, 0] for name in self.modalities}
        present = {name: inputs.present[name] for name in self.modalities}
        if self.joint:
            vectors["joint"] = self._joint(backbone, inputs)
            present["joint"] = present["text"] & present["image"]
        return self.head(self.missing(vectors, present))

    def _states(self, modality: str, backbone: Backbone, inputs: CrisisInputs) -> Tensor:
        """States ``[N, L, D]`` of one modality."""
        if modality == "text":
            text = _given(inputs.text)
            if self.text_encoder is not None:
                return self.text_encoder(text)
            return backbone(text_ids=text.ids, text_padding_mask=text.weights == 0)["encoder_out"]
        images = _given(inputs.images)
        if self.image_encoder is not None:
            return self.image_encoder(normalise(images, images.device, self.image_encoder.normalisation))
        return backbone(normalise(images, images.device, backbone.normalisation))["encoder_out"]

    def _joint(self, backbone: Backbone, inputs: CrisisInputs) -> Tensor:
        """State ``[N, D]`` of text and image read together: that of the image's CLS."""
        text, images = _given(inputs.text), _given(inputs.images)
        pixels = normalise(images, images.device, backbone.normalisation)
        return backbone(pixels, text.ids, text.weights == 0)["encoder_out"][:, 0]


def _given(value: Given | None) -> Given:
    assert value is not None  # the data loader gives what the model reads
    return value
