"""The identification head."""

from __future__ import annotations

import torch

from mca_perception.identification.model import IdentificationConfig, IdentificationHead


def test_head_gives_unit_vectors_that_do_not_depend_on_cls() -> None:
    head = IdentificationHead(32, IdentificationConfig(embedding_dim=16))
    features = torch.randn(3, 37, 32)
    embeddings = head(features)
    assert embeddings.shape == (3, 16)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3), atol=1e-6)
    features[:, 0] += 5
    assert torch.equal(head(features), embeddings)
