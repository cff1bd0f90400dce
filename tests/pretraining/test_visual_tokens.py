"""The random-projection quantiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mca_perception.pretraining.visual_tokens import CODE_DIM, RandomProjectionQuantiser


def test_equals_a_numpy_reference() -> None:
    quantiser = RandomProjectionQuantiser(patch_size=4, codes=50, seed=3)
    images = torch.randn(3, 3, 8, 12)
    codes = quantiser(images)
    assert codes.shape == (3, 6)
    assert codes.dtype == torch.int64
    rng = np.random.default_rng(3)
    projection = rng.standard_normal((CODE_DIM, 48))
    codebook = rng.standard_normal((50, CODE_DIM))
    codebook /= np.linalg.norm(codebook, axis=1, keepdims=True)
    for n in range(3):
        for t in range(6):
            row, column = divmod(t, 3)
            patch = images[n, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].numpy().ravel()
            vector = projection @ patch
            cosine = codebook @ (vector / np.linalg.norm(vector))
            assert cosine[codes[n, t]] == pytest.approx(cosine.max(), abs=1e-6)


def test_seed_decides_the_codes() -> None:
    images = torch.randn(2, 3, 32, 32)
    first, again, other = (RandomProjectionQuantiser(8, 512, seed)(images) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first != other).any()


def test_near_patches_share_a_code_and_codes_are_used() -> None:
    images = torch.randn(200, 3, 16, 16)
    quantiser = RandomProjectionQuantiser(16, 64)
    codes = quantiser(images)
    assert (quantiser(images + 0.01 * torch.randn_like(images)) == codes).float().mean() > 0.9
    assert len(codes.unique()) > 48


def test_many_images_are_coded_as_one_by_one() -> None:
    images = torch.randn(40, 3, 16, 16)
    quantiser = RandomProjectionQuantiser(8, 128)
    assert torch.equal(quantiser(images), torch.cat([quantiser(image[None]) for image in images]))
