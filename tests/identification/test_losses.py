"""Symmetric InfoNCE against a float64 NumPy reference; duplicates do not repel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mca_perception.identification.losses import InfoNCE
from mca_perception.identification.model import IdentificationConfig, IdentificationHead


def reference_loss(queries: np.ndarray, references: np.ndarray, products: list[int], scale: float) -> float:
    total = 0.0
    for similarity in (queries @ references.T, references @ queries.T):
        for i, row in enumerate(similarity):
            kept = [j for j in range(len(row)) if j == i or products[j] != products[i]]
            logits = scale * row[kept]
            total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - scale * row[i]
    return total / (2 * len(queries))


@pytest.mark.parametrize("products", [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2], [0, 0, 0, 0, 0]])
def test_equals_the_numpy_reference(products: list[int]) -> None:
    rng = np.random.default_rng(len(set(products)))
    queries, references = (rng.normal(size=(5, 8)) for _ in range(2))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    loss = InfoNCE()
    found = loss(torch.tensor(queries).float(), torch.tensor(references).float(), torch.tensor(products))
    assert found.item() == pytest.approx(reference_loss(queries, references, products, 1 / 0.07), abs=1e-5)


def test_duplicates_of_a_product_do_not_repel() -> None:
    queries = torch.randn(2, 4, requires_grad=True)
    references = torch.randn(2, 4)
    loss = InfoNCE()(F.normalize(queries, dim=1), F.normalize(references, dim=1), torch.tensor([7, 7]))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert queries.grad is not None
    assert queries.grad.abs().max() < 1e-6


def test_head_gives_unit_vectors_that_do_not_depend_on_cls() -> None:
    head = IdentificationHead(32, IdentificationConfig(embedding_dim=16))
    features = torch.randn(3, 37, 32)
    embeddings = head(features)
    assert embeddings.shape == (3, 16)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3), atol=1e-6)
    features[:, 0] += 5
    assert torch.equal(head(features), embeddings)
