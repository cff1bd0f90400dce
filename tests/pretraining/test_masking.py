"""What is hidden: how much, where, and what takes its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mca_perception.pretraining.masking import MASK_ID, block_mask, mask_texts


def texts(count: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of ordinary tokens between <s> and </s>, each two tokens shorter than the one before at most."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, MASK_ID, (count, length), generator=generator)
    lengths = length - torch.arange(count) % 3
    places = torch.arange(length)[None]
    ids[:, 0] = 0
    ids[places == lengths[:, None] - 1] = 2
    padding = places >= lengths[:, None]
    ids[padding] = 1
    return ids, padding


@pytest.mark.parametrize("share", [0.15, 0.5])
@pytest.mark.parametrize("length", [3, 4, 12, 40])
def test_share_of_the_ordinary_tokens_is_hidden_in_every_text(share: float, length: int) -> None:
    ids, padding = texts(9, length)
    masked = mask_texts(ids, padding, share, generator=torch.Generator().manual_seed(1))
    ordinary = (ids > 3).sum(dim=1)
    expected = torch.clamp((ordinary * share + 0.5).long(), min=1).minimum(ordinary)
    assert torch.equal(masked.hidden.sum(dim=1), expected)
    assert not (masked.hidden & (ids <= 3)).any(), "special tokens and padding are never hidden"
    assert torch.equal(masked.targets, ids)
    assert (masked.ids[masked.hidden] == MASK_ID).all()
    assert torch.equal(masked.ids[~masked.hidden], ids[~masked.hidden])


def test_every_ordinary_place_is_hidden_equally_often() -> None:
    ids, padding = texts(1, 12)
    counts = torch.zeros(12)
    for seed in range(2000):
        counts += mask_texts(ids, padding, 0.3, generator=torch.Generator().manual_seed(seed)).hidden[0]
    assert counts[[0, 11]].sum() == 0
    assert counts[1:11].min() > 500
    assert counts[1:11].max() < 700


def test_text_without_ordinary_tokens_hides_nothing() -> None:
    masked = mask_texts(torch.tensor([[0, 2]]), torch.zeros(1, 2, dtype=torch.bool), 0.15)
    assert not masked.hidden.any()
    assert masked.ids.tolist() == [[0, 2]]


def test_bert_replacement_keeps_ten_percent_and_changes_ten_percent() -> None:
    ids, padding = texts(600, 40)
    masked = mask_texts(ids, padding, 0.5, replacement="bert", generator=torch.Generator().manual_seed(2))
    hidden = masked.hidden
    shown = masked.ids[hidden]
    kept = (shown == ids[hidden]).float().mean()
    replaced = ((shown != ids[hidden]) & (shown != MASK_ID)).float().mean()
    assert kept == pytest.approx(0.1, abs=0.015)
    assert replaced == pytest.approx(0.1, abs=0.015)
    assert shown.min() >= 4
    assert torch.equal(masked.ids[~hidden], ids[~hidden])


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (4, 4), (20, 10), (1, 1)])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.75])
def test_exact_share_of_the_patches_is_hidden(grid: tuple[int, int], share: float) -> None:
    for seed in range(20):
        hidden = block_mask(grid, share, np.random.default_rng(seed))
        assert hidden.shape == (grid[0] * grid[1],)
        assert hidden.sum() == round(share * grid[0] * grid[1])


def test_patches_are_hidden_in_blocks() -> None:
    """Most hidden patches have hidden neighbours on both axes; scattered ones seldom have."""

    def neighbours(hidden: np.ndarray) -> float:
        rows, columns = hidden[:-1] & hidden[1:], hidden[:, :-1] & hidden[:, 1:]
        return (rows.sum() + columns.sum()) / hidden.sum()

    rng = np.random.default_rng(0)
    blocks = [neighbours(block_mask((14, 14), 0.4, rng).reshape(14, 14)) for _ in range(50)]
    scattered = [neighbours((rng.permutation(196) < 78).reshape(14, 14)) for _ in range(50)]
    assert np.mean(blocks) > 1.4
    assert np.mean(scattered) < 0.9


def test_a_mask_holds_a_rectangle_of_the_smallest_area() -> None:
    """Every mask holds a hidden rectangle of about the smallest block, its sides being rounded."""
    largest = []
    for seed in range(15):
        hidden = block_mask((14, 14), 0.4, np.random.default_rng(seed)).reshape(14, 14)
        sides = [
            (bottom - top) * (right - left)
            for top in range(14)
            for bottom in range(top + 1, 15)
            for left in range(14)
            for right in range(left + 1, 15)
            if hidden[top, left] and hidden[bottom - 1, right - 1] and hidden[top:bottom, left:right].all()
        ]
        largest.append(max(sides))
    assert min(largest) >= 14
