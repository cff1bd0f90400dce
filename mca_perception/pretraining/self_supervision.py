"""Contrast within a modality, beside the contrast between the two: CleanCLIP's defence against poisoned pairs.

A backdoor ties a trigger to a text by few wrong pairs. Fine-tuning on trusted pairs with a loss that also draws every
image to a changed copy of itself, and every text to one of itself, breaks the tie (specification of related methods,
entry 1 of the contrastive list and row 11 of the plan).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mca_perception.contrastive.paired import info_nce
from mca_perception.pretraining.objectives import Texts

SMALLEST_CROP = 0.3
COLOUR = 0.4
COVERED = (0.3, 0.6)
DROPPED_TOKENS = 0.15
TEMPERATURE = 0.1


def self_contrast(rows: Tensor, changed: Tensor, labels: Tensor | None = None) -> Tensor:
    """InfoNCE between items and changed copies of them.

    Args:
        rows: ``[N, D]`` embeddings.
        changed: ``[N, D]`` of the copies.
        labels: ``[N]``, equal where items must not repel each other.
    """
    return info_nce(rows, changed, TEMPERATURE, labels)


def changed_images(images: Tensor) -> Tensor:
    """Another view of each of the normalised images ``[N, 3, H, W]``.

    A random part, perhaps mirrored, with other colours and a rectangle of noise over it: whatever a patch shows, the
    image stays the same.
    """
    count, device = len(images), images.device
    side = torch.empty(count, device=device).uniform_(SMALLEST_CROP, 1.0).sqrt()
    shift = (torch.rand(count, 2, device=device) * 2 - 1) * (1 - side)[:, None]
    mirrored = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(side)
    rows = torch.stack([side * mirrored, zero, shift[:, 0], zero, side, shift[:, 1]], 1)
    grid = F.affine_grid(rows.view(count, 2, 3), list(images.shape), align_corners=False)
    views = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    gain = 1 + COLOUR * (torch.rand(count, 1, 1, 1, device=device) * 2 - 1)
    mean = views.mean(dim=(2, 3), keepdim=True)
    contrast = 1 + COLOUR * (torch.rand(count, 1, 1, 1, device=device) * 2 - 1)
    views = ((views - mean) * contrast + mean) * gain
    return torch.where(_rectangles(views), torch.randn_like(views), views).to(images.dtype)


def _rectangles(images: Tensor) -> Tensor:
    """``[N, 1, H, W]`` bool, true in a random rectangle of every image with sides of :data:`COVERED`."""
    inside = []
    for length in images.shape[2:]:
        share = torch.empty(len(images), 1, device=images.device).uniform_(*COVERED)
        start = torch.rand(len(images), 1, device=images.device) * (1 - share)
        place = (torch.arange(length, device=images.device) + 0.5) / length
        inside.append((place >= start) & (place < start + share))
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def changed_texts(texts: Texts, padding_id: int = 1) -> Texts:
    """Another wording of each text: some tokens are left out and two neighbours change places.

    The first and the last token of a text stay, and so does at least one between them, if there was one.

    Args:
        texts: ids ``[N, L]`` with ``<s>`` first and ``</s>`` last.
        padding_id: id of padding tokens.
    """
    ids, padding = texts.ids.clone(), texts.padding_mask
    lengths = (~padding).sum(1)
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    inner = (place > 0) & (place < lengths[:, None] - 1)
    first = _random_place(inner[:, :-1] & inner[:, 1:])
    exchanged = first >= 0
    row = torch.arange(len(ids), device=ids.device)[exchanged]
    left = first[exchanged]
    ids[row, left], ids[row, left + 1] = ids[row, left + 1].clone(), ids[row, left].clone()
    dropped = inner & (torch.rand(ids.shape, device=ids.device) < DROPPED_TOKENS)
    kept_at_least = _random_place(inner)
    some = kept_at_least >= 0
    dropped[torch.arange(len(ids), device=ids.device)[some], kept_at_least[some]] = False
    order = (dropped | padding).to(torch.int8).argsort(dim=1, stable=True)
    gone = (dropped | padding).gather(1, order)
    return Texts(ids.gather(1, order).masked_fill(gone, padding_id), gone)


def _random_place(allowed: Tensor) -> Tensor:
    """A random true column of every row ``[N]``; -1 where there is none."""
    if not allowed.shape[1]:
        return allowed.new_full((len(allowed),), -1, dtype=torch.int64)
    chance = torch.rand(allowed.shape, device=allowed.device).masked_fill(~allowed, -1)
    best = chance.max(dim=1)
    return torch.where(best.values >= 0, best.indices, -1)
