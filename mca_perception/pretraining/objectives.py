"""The pre-training objectives as functions of a backbone, its heads and a batch.

Specification of the framework, sections 6.1 to 6.4: image-text contrast, masked modelling of texts, images and pairs,
and image-text matching with hard negatives.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mca_perception.backbone import Backbone
from mca_perception.pretraining.losses import hard_negatives, info_nce, logit_factor
from mca_perception.pretraining.masking import MaskedTexts
from mca_perception.pretraining.model import PretrainingHeads


class Texts(NamedTuple):
    """Token ids ``[N, L]`` int64, and where they are padding ``[N, L]`` bool."""

    ids: Tensor
    padding_mask: Tensor


class MaskedImages(NamedTuple):
    """Images with hidden patches.

    Attributes:
        images: ``[N, 3, H, W]`` normalised RGB.
        hidden: ``[N, T]`` bool, True where a patch is hidden.
        codes: ``[N, T]`` int64 codes of the patches, the targets.
    """

    images: Tensor
    hidden: Tensor
    codes: Tensor


class Prediction(NamedTuple):
    """Logits ``[M, C]`` and targets ``[M]`` int64 of the hidden positions of a batch."""

    logits: Tensor
    targets: Tensor


class PairEmbeddings(NamedTuple):
    """Embeddings of images and texts, both ``[N, D]`` float32 of length 1; rows i belong together."""

    images: Tensor
    texts: Tensor


def embed_pairs(backbone: Backbone, heads: PretrainingHeads, images: Tensor, texts: Texts) -> PairEmbeddings:
    """Encode images ``[N, 3, H, W]`` and texts separately (dual encoder)."""
    return PairEmbeddings(
        heads.embed_images(backbone(images)["encoder_out"]),
        heads.embed_texts(backbone(text_ids=texts.ids, text_padding_mask=texts.padding_mask)["encoder_out"]),
    )


def image_text_contrast(
    heads: PretrainingHeads, pairs: PairEmbeddings, labels: Tensor | None = None
) -> Tensor:
    """ITC loss (section 6.1) over the batches of all processes; rows with equal ``labels`` do not repel each other."""
    with torch.autocast(pairs.images.device.type, enabled=False):
        return info_nce(pairs.images, pairs.texts, 1 / logit_factor(heads.logit_scale), labels)


def predict_masked(
    backbone: Backbone,
    heads: PretrainingHeads,
    *,
    images: MaskedImages | None = None,
    texts: MaskedTexts | None = None,
) -> dict[str, Prediction]:
    """Masked-data modelling (sections 6.2 and 6.4): logits at the hidden positions alone.

    With texts it is masked language modelling, with images masked image modelling, with both the two at once on fused
    pairs, where text tokens see the patches left and the other way round.

    Args:
        backbone: with images, a Multiway Transformer: it has the mask token.
        heads: with ``mlm_head`` for texts and ``mim_head`` for images.
        images: images with hidden patches, or None.
        texts: texts with hidden tokens, or None.

    Returns:
        A prediction under ``image``, ``text`` or both.
    """
    inputs: dict[str, Tensor] = {}
    if images is not None:
        inputs |= {"images": images.images, "masked_patches": images.hidden}
    if texts is not None:
        inputs |= {"text_ids": texts.ids, "text_padding_mask": texts.padding_mask}
    states = backbone(**inputs)["encoder_out"]
    predictions = {}
    first_text = 0
    if images is not None:
        first_text = 1 + images.hidden.shape[1]
        patches = states[:, 1:first_text]
        predictions["image"] = Prediction(heads.mim_head(patches[images.hidden]), images.codes[images.hidden])
    if texts is not None:
        tokens = states[:, first_text:]
        predictions["text"] = Prediction(heads.mlm_head(tokens[texts.hidden]), texts.targets[texts.hidden])
    return predictions


def match_pairs(
    backbone: Backbone,
    heads: PretrainingHeads,
    images: Tensor,
    texts: Texts,
    pairs: PairEmbeddings,
    labels: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Image-text matching (section 6.3): ``[3N, 2]`` logits for :func:`~.matching_loss`.

    Of N pairs as they are, N with a wrong text and N with a wrong image, read from the state of ``<s>`` in the fused
    sequence. Negatives come from the batch of this process, drawn by the similarities of ``pairs``; ``labels`` and
    ``generator`` as in :func:`~.hard_negatives`.
    """
    with torch.autocast(images.device.type, enabled=False):
        similarity = logit_factor(heads.logit_scale) * pairs.images @ pairs.texts.T
    negatives = hard_negatives(similarity, labels, generator=generator)
    fused = backbone(
        torch.cat([images, images, images[negatives.images]]),
        torch.cat([texts.ids, texts.ids[negatives.texts], texts.ids]),
        torch.cat([texts.padding_mask, texts.padding_mask[negatives.texts], texts.padding_mask]),
    )["encoder_out"]
    return heads.itm_head(fused[:, fused.shape[1] - texts.ids.shape[1]])
