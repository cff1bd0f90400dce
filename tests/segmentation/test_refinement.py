"""The refinement of candidates: what it looks at, and that nothing depends on the order of candidates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mca_perception.segmentation.refinement import Candidates, Refinement

HIDDEN, MASK, KERNEL = 8, 4, 10


def scene(count: int) -> tuple[Candidates, Tensor, Tensor]:
    """Random candidates, token features and mask features of a 32 x 48 px image."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.zeros(1, count, dtype=torch.int64)
    masks = 3 * draw(1, count, 8, 12)
    candidates = Candidates(draw(1, count), labels, draw(1, count, HIDDEN), draw(1, count, KERNEL), masks)
    return candidates, draw(1, 6, HIDDEN), draw(1, MASK, 8, 12)


def refinement() -> Refinement:
    torch.manual_seed(0)
    module = Refinement(HIDDEN, MASK, KERNEL, 16).eval()
    torch.nn.init.normal_(module.kernel.weight)
    torch.nn.init.normal_(module.quality.weight)
    torch.nn.init.normal_(module.containment)
    return module


def test_starts_without_correction_from_score_and_confidence() -> None:
    """Logit of the token's score, plus twice the log of the mean probability inside the mask."""
    candidates, hidden, features = scene(5)
    change = Refinement(HIDDEN, MASK, KERNEL, 16)(candidates, hidden, features)
    assert torch.equal(change.kernels, torch.zeros(1, 5, KERNEL))
    probability = candidates.mask_logits.sigmoid()
    for k in range(5):
        mask = probability[0, k]
        mean = mask[mask > 0.5].sum() / ((mask > 0.5).sum() + 1)
        expected = candidates.score_logits[0, k] + 2 * (mean + 1e-4).log()
        assert change.quality_logits[0, k].item() == pytest.approx(expected.item(), abs=1e-5)


def test_follows_a_permutation_of_the_candidates() -> None:
    module, (candidates, hidden, features) = refinement(), scene(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = Candidates(*(part[:, order] for part in candidates))
    first, second = module(candidates, hidden, features), module(shuffled, hidden, features)
    assert torch.allclose(first.quality_logits[:, order], second.quality_logits, atol=1e-5)
    assert torch.allclose(first.kernels[:, order], second.kernels, atol=1e-5)


def test_looks_under_the_mask_only() -> None:
    """Features that no mask covers change nothing; those that one covers change that one."""
    module, (candidates, hidden, features) = refinement(), scene(2)
    masks = torch.full_like(candidates.mask_logits, -100.0)
    masks[0, 0, :4, :4] = 100  # exactly the first token
    masks[0, 1, 4:, 8:] = 100  # exactly the last
    candidates = candidates._replace(mask_logits=masks)
    before = module(candidates, hidden, features).quality_logits[0]
    elsewhere, inside = features.clone(), features.clone()
    elsewhere[..., :4, 4:8] += 5
    inside[..., :4, :4] += 5
    assert torch.allclose(module(candidates, hidden, elsewhere).quality_logits[0], before, atol=1e-5)
    assert (module(candidates, hidden, inside).quality_logits[0, 0] - before[0]).abs() > 1e-3
    tokens = hidden.clone()
    tokens[0, 2] += 5
    assert torch.allclose(module(candidates, tokens, features).quality_logits[0], before, atol=1e-5)
    tokens[0, 5] += 5
    assert (module(candidates, tokens, features).quality_logits[0, 1] - before[1]).abs() > 1e-3


def test_knows_which_mask_contains_which() -> None:
    """A part inside a whole is told from the same part beside it by the containment alone."""
    module, (candidates, hidden, features) = refinement(), scene(2)
    same = torch.zeros_like(hidden), torch.zeros_like(features)  # nothing else to tell them by

    def quality(rows: slice) -> Tensor:
        masks = torch.full_like(candidates.mask_logits, -100.0)
        masks[0, 0, :4, :4] = 100
        masks[0, 1, rows, :8] = 100
        return module(candidates._replace(mask_logits=masks), *same).quality_logits[0, 0]

    assert (quality(slice(0, 4)) - quality(slice(4, 8))).abs() > 1e-4
