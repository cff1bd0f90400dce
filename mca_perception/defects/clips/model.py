"""Clips of a pick: a light temporal head on what the defect head says of the frames, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mca_perception.datasets.armbench_defect_videos import BITS
from mca_perception.datasets.armbench_defects import LABELS
from mca_perception.defects.clues import CLUES
from mca_perception.defects.model import DefectConfig, ImageEvidence, strongest


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of the head.

    Attributes:
        hidden_dim: width of the state that is carried from frame to frame.
        frame_size: side of a frame in pixels, a multiple of the patch size.
        dropout: on the frames' evidence while training.
        detail_dim: of the branch for details, see :class:`~mca_perception.defects.model.DefectConfig`.
        frozen_frames: frames are judged as the head that the training starts from judges images.
    """

    hidden_dim: int = 16
    frame_size: int = 160
    dropout: float = 0.1
    detail_dim: int = 0
    frozen_frames: bool = False


class ClipHead(nn.Module):
    """Two independent bits per frame, open and deconstruction, from that frame and those before it.

    The published models look at a whole clip at once (specification of ARMBench, section 2.4). Here a frame is judged
    as any other image of a pick, so that what was learnt from images serves, and a recurrent unit answers after every
    frame, so that a line can stop early; the clip's answer is the largest one. The unit sees judgements and not
    evidence: clips with a defect are few, and a wider input learns them by heart.
    """

    def __init__(self, embed_dim: int, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        image = DefectConfig(
            dropout=config.dropout, crop_size=config.frame_size, detail_dim=config.detail_dim
        )
        self.evidence = ImageEvidence(embed_dim, image)
        self.classify_frame = nn.Linear(image.hidden_dim, len(LABELS))
        if config.frozen_frames:
            for part in (self.evidence, self.classify_frame):
                part.requires_grad_(False)
        judgement = len(LABELS) + len(CLUES)
        self.memory = nn.GRU(judgement, config.hidden_dim, batch_first=True)
        self.classify = nn.Linear(judgement + config.hidden_dim, len(BITS))

    def train(self, mode: bool = True) -> ClipHead:
        """As usual; frozen parts stay as they are at work."""
        super().train(mode)
        if self.config.frozen_frames:
            self.evidence.eval()
        return self

    def judge(self, features: Tensor, images: Tensor) -> Tensor:
        """What frames show, ``[N, J]``: logits of the classes of images and those of the strongest clues.

        Args:
            features: ``[N, 1 + T, D]`` backbone output, CLS first.
            images: ``[N, 3, S, S]`` its input.
        """
        evidence, clues = self.evidence(features, images)
        return torch.cat([self.classify_frame(evidence), strongest(clues)], dim=-1).float()

    def forward(self, judgements: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Judge the next frames of clips.

        Args:
            judgements: ``[C, T, J]`` of the frames.
            state: ``[1, C, H]`` after the frames before; None at the beginning.

        Returns:
            Logits ``[C, T, 2]`` after every frame, float32, and the state for the frames to come.
        """
        remembered, state = self.memory(judgements, state)
        return self.classify(torch.cat([judgements, remembered], dim=-1)).float(), state


def clip_logits(logits: Tensor) -> Tensor:
    """Logits ``[C, 2]`` of clips from those of their frames ``[C, T, 2]``: the largest, smoothed so that all learn."""
    return torch.logsumexp(logits, dim=1) - torch.log(torch.tensor(float(logits.shape[1])))
