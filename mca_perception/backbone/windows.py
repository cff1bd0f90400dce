"""Window attention of a plain encoder at high resolution (ViTDet), with the CLS token kept.

Patches attend inside windows of equal shape. Every window also holds a copy of the CLS token, whose new states are
averaged over the windows; one window over the whole grid therefore equals global attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Windows:
    """How a grid of patches is cut.

    Attributes:
        grid: rows and columns of patches.
        counts: windows along rows and columns.
        shape: rows and columns of one window. Windows are as even as the grid allows, so that a 64 x 64 grid with
            windows of at most 14 becomes 5 x 5 windows of 13 with one padded row, not 70 x 70 patches.
    """

    grid: tuple[int, int]
    counts: tuple[int, int]
    shape: tuple[int, int]

    @classmethod
    def fit(cls, grid: tuple[int, int], window_size: int) -> Windows:
        """The fewest even windows of at most ``window_size`` patches a side that cover ``grid``."""
        counts = (-(-grid[0] // window_size), -(-grid[1] // window_size))
        return cls(grid, counts, (-(-grid[0] // counts[0]), -(-grid[1] // counts[1])))

    @property
    def _padding(self) -> tuple[int, int]:
        rows, columns = (
            count * side - total
            for count, side, total in zip(self.counts, self.shape, self.grid, strict=True)
        )
        return rows, columns

    def _cut(self, patches: Tensor) -> Tensor:
        """``[N, rows, columns, D]`` to ``[N * windows, patches of a window, D]``, padded with zeros at the end."""
        rows, columns = self._padding
        if rows or columns:
            patches = F.pad(patches, (0, 0, 0, columns, 0, rows))
        size, dim = patches.shape[0], patches.shape[-1]
        cut = patches.view(size, self.counts[0], self.shape[0], self.counts[1], self.shape[1], dim)
        return cut.transpose(2, 3).reshape(-1, self.shape[0] * self.shape[1], dim)

    def split(self, tokens: Tensor) -> Tensor:
        """``[N, 1 + T, D]`` tokens, CLS first, to ``[N * windows, 1 + window, D]``."""
        size, _, dim = tokens.shape
        patches = self._cut(tokens[:, 1:].view(size, *self.grid, dim))
        cls = tokens[:, :1].repeat_interleave(self.counts[0] * self.counts[1], dim=0)
        return torch.cat([cls, patches], dim=1)

    def join(self, windows: Tensor) -> Tensor:
        """The inverse of :meth:`split`; the CLS token is the mean over its copies."""
        number = self.counts[0] * self.counts[1]
        size, dim = windows.shape[0] // number, windows.shape[-1]
        cls = windows[:, 0].view(size, number, dim).mean(dim=1, keepdim=True)
        patches = windows[:, 1:].view(size, self.counts[0], self.counts[1], *self.shape, dim).transpose(2, 3)
        patches = patches.reshape(size, self.counts[0] * self.shape[0], self.counts[1] * self.shape[1], dim)
        patches = patches[:, : self.grid[0], : self.grid[1]].reshape(size, -1, dim)
        return torch.cat([cls, patches], dim=1)

    def mask(self, tokens: Tensor) -> Tensor | None:
        """``[N * windows, 1, 1, 1 + window]`` bool for ``[N, 1 + T, D]`` tokens, False at padding; None without."""
        if not any(self._padding):
            return None
        real = self._cut(tokens.new_ones(1, *self.grid, 1))[..., 0] > 0
        real = F.pad(real, (1, 0), value=True)
        return real.repeat(tokens.shape[0], 1)[:, None, None]
