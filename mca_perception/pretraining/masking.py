"""What masked-data modelling hides: text tokens at random, image patches in blocks."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Ids of BEiT-3's tokenizer: specification of the framework, section 3.2.
SPECIAL_IDS = (0, 1, 2)
FIRST_PIECE_ID = 4
MASK_ID = 64_001
# BERT's shares of chosen tokens that are masked, and that are masked or replaced.
MASKED_SHARE, CHANGED_SHARE = 0.8, 0.9
# BEiT's blocks.
SMALLEST_BLOCK = 16
NARROWEST_BLOCK = 0.3
PLACING_ATTEMPTS = 10


class MaskedTexts(NamedTuple):
    """Texts with hidden tokens, all ``[N, L]``.

    Attributes:
        ids: int64 ids with the hidden tokens replaced.
        padding_mask: bool, True at padding.
        hidden: bool, True where the original is to be predicted.
        targets: int64 ids as they were.
    """

    ids: Tensor
    padding_mask: Tensor
    hidden: Tensor
    targets: Tensor


def mask_texts(
    ids: Tensor,
    padding_mask: Tensor,
    share: float,
    *,
    mask_id: int = MASK_ID,
    replacement: Literal["mask", "bert"] = "mask",
    generator: torch.Generator | None = None,
) -> MaskedTexts:
    """Hide a share of each text's tokens, at least one; ``<s>``, ``</s>`` and padding are never hidden.

    Args:
        ids: ``[N, L]`` int64.
        padding_mask: ``[N, L]`` bool, True at padding.
        share: of the ordinary tokens of each text; the count is rounded to the nearest whole number.
        mask_id: id of ``<mask>``, which is one more than that of the last ordinary piece.
        replacement: ``mask`` puts ``<mask>`` in every hidden place; ``bert`` in 80 %, a random ordinary token in 10 %,
            and leaves the token in 10 %.
        generator: source of randomness, on the device of ``ids``; the global one by default.
    """
    ordinary = ~padding_mask & ~torch.isin(ids, torch.tensor(SPECIAL_IDS, device=ids.device))
    total = ordinary.sum(dim=1, keepdim=True)
    count = torch.minimum((total * share + 0.5).long().clamp(min=1), total)
    draw = torch.rand(ids.shape, generator=generator, device=ids.device).masked_fill(~ordinary, 2.0)
    hidden = draw.argsort(dim=1).argsort(dim=1) < count
    changed = torch.where(hidden, mask_id, ids)
    if replacement == "bert":
        fate = torch.rand(ids.shape, generator=generator, device=ids.device)
        pieces = torch.randint(FIRST_PIECE_ID, mask_id, ids.shape, generator=generator, device=ids.device)
        changed = torch.where(hidden & (fate >= MASKED_SHARE), pieces, changed)
        changed = torch.where(hidden & (fate >= CHANGED_SHARE), ids, changed)
    return MaskedTexts(changed, padding_mask, hidden, ids)


def block_mask(
    grid: tuple[int, int], share: float, rng: np.random.Generator, *, smallest: int = SMALLEST_BLOCK
) -> NDArray[np.bool_]:
    """Hide a share of an image's patches in rectangular blocks, as BEiT does.

    Blocks of random area (``smallest`` patches or more, never more than are still to hide) and aspect ratio (0.3 to
    3.3) are added until the count is reached; what no block fits any more is filled with single patches, so that the
    count is exact.

    Args:
        grid: patches along (height, width).
        share: of the patches; the count is rounded.
        rng: source of randomness.
        smallest: least number of patches in a block, or a quarter of the count where that is less.

    Returns:
        bool ``[height * width]`` in row-major order, True where hidden.
    """
    height, width = grid
    hidden = np.zeros(grid, bool)
    wanted = round(share * height * width)
    smallest = max(1, min(smallest, wanted // 4))
    narrow = math.log(NARROWEST_BLOCK)
    while (left := wanted - int(hidden.sum())) > 0:
        for _ in range(PLACING_ATTEMPTS):
            area = rng.uniform(min(smallest, left), left)
            aspect = math.exp(rng.uniform(narrow, -narrow))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < rows <= height and 0 < columns <= width):
                continue
            top, start = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            block = hidden[top : top + rows, start : start + columns]
            if 0 < rows * columns - int(block.sum()) <= left:
                block[:] = True
                break
        else:
            free = np.flatnonzero(~hidden)
            hidden.flat[rng.choice(free, left, replace=False)] = True
    return hidden.ravel()
