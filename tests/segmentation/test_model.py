"""The edge head: shapes, the relative polynomial as one matrix product, one static graph."""

from __future__ import annotations

import pytest
import torch

from mca_perception.segmentation.model import (
    MASK_STRIDE,
    POSITION_TERMS,
    POSITION_UNIT,
    SegmentationConfig,
    SegmentationHead,
    _coordinate_basis,
    _shift_kernels,
    token_centres,
)


@pytest.mark.parametrize(("height", "width", "labels"), [(64, 96, ("Object",)), (96, 64, ("Object", "Tote"))])
def test_shapes(height: int, width: int, labels: tuple[str, ...]) -> None:
    head = SegmentationHead(
        32, SegmentationConfig(labels=labels, hidden_dim=32, pyramid_dim=16, max_objects=10)
    ).eval()
    tokens = height // 16 * (width // 16)
    features, images = torch.randn(2, 1 + tokens, 32), torch.randn(2, 3, height, width)
    output = head(features, images)
    assert output.class_logits.shape == (2, tokens, len(labels))
    assert output.kernels.shape == (2, tokens, len(labels), 32 + POSITION_TERMS)
    assert output.hidden.shape == (2, tokens, 32)
    assert output.basis.shape == (2, 32 + POSITION_TERMS, height // 4, width // 4)
    scores, kinds, masks = head.predict(features, images)
    assert scores.shape == kinds.shape == (2, 10)
    assert masks.shape == (2, 10, height // 4, width // 4)
    assert (scores.diff(dim=1) <= 0).all()
    assert kinds.dtype == torch.int64
    assert ((kinds >= 0) & (kinds < len(labels))).all()


def test_fewer_tokens_than_max_objects() -> None:
    head = SegmentationHead(32, SegmentationConfig(hidden_dim=32, pyramid_dim=16, max_objects=100)).eval()
    assert head.predict(torch.randn(1, 5, 32), torch.randn(1, 3, 32, 32))[0].shape == (1, 4)


def test_candidates_are_the_best_scores_of_all_tokens_and_classes() -> None:
    """Each with the kernel of its own token and class; an untrained refinement leaves the masks as they are."""
    torch.manual_seed(0)
    config = SegmentationConfig(labels=("Object", "Tote"), hidden_dim=32, pyramid_dim=16, max_objects=5)
    head = SegmentationHead(32, config).eval()
    output = head(torch.randn(1, 1 + 12, 32), torch.randn(1, 3, 48, 64))
    candidates, refined = head.refine(output)
    order = output.class_logits[0].flatten().argsort(descending=True)[:5]
    assert torch.equal(candidates.labels[0], order % 2)
    assert torch.equal(candidates.score_logits[0], output.class_logits[0].flatten()[order])
    for place, best in enumerate(order.tolist()):
        kernel = output.kernels[0, best // 2, best % 2]
        mask = torch.einsum("d,dhw->hw", kernel, output.basis[0])
        assert torch.allclose(candidates.mask_logits[0, place], mask, atol=1e-5)
        assert torch.allclose(refined.mask_logits[0, place], mask, atol=1e-5)


def test_shifted_polynomial_equals_the_one_in_relative_coordinates() -> None:
    """q(x - cx, y - cy) evaluated directly, against the absolute coefficients times the shared basis."""
    torch.manual_seed(0)
    coefficients = torch.randn(1, 6, POSITION_TERMS, dtype=torch.float64)
    height, width = 2, 3
    like = torch.zeros(1)
    centres = token_centres(height, width, like).double()
    basis = _coordinate_basis(height * 4, width * 4, like).double()
    absolute = _shift_kernels(coefficients, centres)
    found = (absolute @ basis.flatten(2))[0].view(6, height * 4, width * 4)
    unit = MASK_STRIDE / POSITION_UNIT
    for token, (cx, cy) in enumerate(centres.tolist()):
        for row, column in ((0, 0), (5, 7), (7, 11)):
            x, y = (column + 0.5) * unit - cx, (row + 0.5) * unit - cy
            terms = torch.tensor([1, x, y, x * x, x * y, y * y], dtype=torch.float64)
            assert found[token, row, column].item() == pytest.approx(
                (coefficients[0, token] @ terms).item(), abs=1e-9
            )
