"""Discrete targets of masked image modelling.

BEiT-3 predicts the 8,192 tokens of BEiT-v2's learned visual tokenizer. Without its weights, a fixed random projection
with a fixed random codebook takes its place, as BEST-RQ (Chiu et al., ICML 2022) does for speech: nothing is learned,
yet near patches share a code, and predicting codes from context asks for the content of the hidden patch.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CODE_DIM = 16


class VisualTokenizer(Protocol):
    """Turns images into one discrete code per patch; implement it to train against another tokenizer's codes.

    Attributes:
        codes: number K of different codes.
    """

    codes: int

    def __call__(self, images: Tensor) -> Tensor:
        """``[N, 3, H, W]`` normalised RGB to ``[N, T]`` int64 codes below K, patches in row-major order."""
        ...


class RandomProjectionQuantiser:
    """The nearest of K random unit vectors to a random projection of the patch's pixels, by cosine.

    The projection is Gaussian; both tables depend on the seed alone.

    Args:
        patch_size: side of a patch in pixels.
        codes: number K of codes.
        seed: of both tables.
    """

    def __init__(self, patch_size: int, codes: int = 8192, seed: int = 0) -> None:
        self.codes = codes
        rng = np.random.default_rng(seed)
        projection = rng.standard_normal((CODE_DIM, 3, patch_size, patch_size)) / (patch_size * 3**0.5)
        codebook = rng.standard_normal((codes, CODE_DIM))
        codebook /= np.linalg.norm(codebook, axis=1, keepdims=True)
        self.projection = torch.from_numpy(projection).float()
        self.codebook = torch.from_numpy(codebook).float()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """``[N, 3, H, W]`` normalised RGB to ``[N, T]`` int64 codes, patches in row-major order."""
        projection, codebook = self.projection.to(images.device), self.codebook.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            projected = F.conv2d(images.float(), projection, stride=projection.shape[-1])
            patches = projected.flatten(2).transpose(1, 2)
            # A few images at a time: the similarities to all codes are large.
            return torch.cat([(part @ codebook.T).argmax(dim=-1) for part in torch.split(patches, 16)])
