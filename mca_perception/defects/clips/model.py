"""Clips of a pick: a light temporal head on the frames' features, one frame after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mca_perception.datasets.armbench_defect_videos import BITS


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of the head.

    Attributes:
        hidden_dim: width of the state that is carried from frame to frame.
        frame_size: side of a frame in pixels, a multiple of the patch size.
        dropout: on the frames' vectors while training.
    """

    hidden_dim: int = 128
    frame_size: int = 160
    dropout: float = 0.1


class ClipHead(nn.Module):
    """Two independent bits per frame, open and deconstruction, from that frame and those before it.

    The published models look at a whole clip at once (specification of ARMBench, section 2.4). A recurrent unit
    answers after every frame instead, so that a line can stop early; the clip's answer is the largest one.
    """

    def __init__(self, embed_dim: int, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.frame = nn.Sequential(
            nn.LayerNorm(3 * embed_dim, eps=1e-5),
            nn.Linear(3 * embed_dim, config.hidden_dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        self.memory = nn.GRU(config.hidden_dim, config.hidden_dim, batch_first=True)
        self.classify = nn.Linear(2 * config.hidden_dim, len(BITS))

    def summarise(self, features: Tensor) -> Tensor:
        """Vectors ``[N, 3 D]`` of frames from backbone output ``[N, 1 + T, D]``: CLS, mean and maximum of patches."""
        tokens = features[:, 1:]
        return torch.cat([features[:, 0], tokens.mean(dim=1), tokens.amax(dim=1)], dim=-1)

    def forward(self, vectors: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Judge the next frames of clips.

        Args:
            vectors: ``[C, T, 3 D]`` from :meth:`summarise`.
            state: ``[1, C, H]`` after the frames before; None at the beginning.

        Returns:
            Logits ``[C, T, 2]`` after every frame, float32, and the state for the frames to come.
        """
        frames = self.frame(vectors)
        remembered, state = self.memory(frames, state)
        return self.classify(torch.cat([frames, remembered], dim=-1)).float(), state


def clip_logits(logits: Tensor) -> Tensor:
    """Logits ``[C, 2]`` of clips from those of their frames ``[C, T, 2]``: the largest, smoothed so that all learn."""
    return torch.logsumexp(logits, dim=1) - torch.log(torch.tensor(float(logits.shape[1])))
