"""The simple feature pyramid: shapes, strides, and where its cells lie."""

from __future__ import annotations

import pytest
import torch

from mca_perception.errors import BackboneError
from mca_perception.segmentation.cascade.pyramid import (
    PYRAMID_STRIDES,
    ChannelNorm,
    SimpleFeaturePyramid,
    tokens_to_map,
)


@pytest.mark.parametrize(("height", "width"), [(128, 192), (64, 320), (256, 256)])
def test_each_map_has_its_stride(height: int, width: int) -> None:
    pyramid = SimpleFeaturePyramid(embed_dim=32, channels=24)
    maps = pyramid(torch.randn(2, 32, height // 16, width // 16))
    assert [tuple(part.shape) for part in maps] == [
        (2, 24, height // stride, width // stride) for stride in PYRAMID_STRIDES
    ]
    assert pyramid.strides == (4, 8, 16, 32, 64)


def test_odd_number_of_tokens_keeps_the_border() -> None:
    maps = SimpleFeaturePyramid(16, 8)(torch.randn(1, 16, 13, 9))
    assert [tuple(part.shape[-2:]) for part in maps] == [(52, 36), (26, 18), (13, 9), (7, 5), (4, 3)]


def test_only_the_last_map_is_read_and_cells_stay_in_place() -> None:
    """A change of one token shows up at the same place of every level, and (convolutions apart) only there."""
    torch.manual_seed(0)
    pyramid = SimpleFeaturePyramid(16, 8).eval()
    before = torch.randn(1, 16, 16, 16)
    after = before.clone()
    after[0, :, 4, 12] += 5.0
    for stride, old, new in zip(PYRAMID_STRIDES, pyramid(before), pyramid(after), strict=True):
        rows, columns = (old != new).any(dim=1)[0].nonzero(as_tuple=True)
        assert (rows.min() - 1) * stride <= 4 * 16 <= (rows.max() + 1) * stride
        assert (columns.min() - 1) * stride <= 12 * 16 <= (columns.max() + 1) * stride
        assert rows.max() - rows.min() <= 16 // stride + 2
        assert columns.max() - columns.min() <= 16 // stride + 2


def test_coarsest_map_is_every_second_cell() -> None:
    maps = SimpleFeaturePyramid(16, 8)(torch.randn(1, 16, 16, 24))
    assert torch.equal(maps[4], maps[3][:, :, ::2, ::2])


def test_norm_is_over_the_channels_of_a_cell() -> None:
    normalised = ChannelNorm(32)(torch.randn(2, 32, 5, 7) * 3 + 4)
    assert normalised.mean(dim=1).abs().max() < 1e-5
    assert (normalised.var(dim=1, unbiased=False) - 1).abs().max() < 1e-3


def test_tokens_return_to_their_grid() -> None:
    tokens = torch.arange(1 + 2 * 3).float()[None, :, None].expand(2, -1, 5)
    grid = tokens_to_map(tokens, (32, 48))
    assert grid.shape == (2, 5, 2, 3)
    assert grid[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("size", [(32, 64), (28, 42)])
def test_other_patch_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(BackboneError, match="patch size 16"):
        tokens_to_map(torch.zeros(1, 7, 5), size)
