"""The objectives on a tiny model: right positions, no leaks, and a contrastive overfit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mca_perception.pretraining.losses import masked_prediction_loss, matching_loss
from mca_perception.pretraining.masking import MaskedTexts, block_mask, mask_texts
from mca_perception.pretraining.metrics import image_text_recall
from mca_perception.pretraining.objectives import (
    MaskedImages,
    Texts,
    embed_pairs,
    image_text_contrast,
    match_pairs,
    predict_masked,
)
from tests.support.pretraining import COLOURS, tiny_model

MASK = 95


def batch(count: int = 3, seed: int = 0) -> tuple[MaskedImages, MaskedTexts]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, MASK, (count, 7), generator=generator)
    ids[:, 0], ids[:, -1] = 0, 2
    padding = torch.zeros_like(ids, dtype=torch.bool)
    ids[0, 5:], padding[0, 6:] = torch.tensor([2, 1]), True
    texts = mask_texts(ids, padding, 0.5, mask_id=MASK, generator=generator)
    rng = np.random.default_rng(seed)
    hidden = torch.from_numpy(np.stack([block_mask((2, 2), 0.5, rng) for _ in range(count)]))
    images = torch.randn(count, 3, 32, 32, generator=generator)
    return MaskedImages(images, hidden, torch.randint(20, (count, 4), generator=generator)), texts


@pytest.mark.parametrize(
    ("with_images", "with_texts", "parts"),
    [(True, False, {"image"}), (False, True, {"text"}), (True, True, {"image", "text"})],
)
def test_logits_are_those_of_the_hidden_positions(
    with_images: bool, with_texts: bool, parts: set[str]
) -> None:
    backbone, heads = tiny_model()
    images, texts = batch()
    predictions = predict_masked(
        backbone, heads, images=images if with_images else None, texts=texts if with_texts else None
    )
    assert set(predictions) == parts
    states = backbone(
        images.images if with_images else None,
        texts.ids if with_texts else None,
        texts.padding_mask if with_texts else None,
        **({"masked_patches": images.hidden} if with_images else {}),
    )["encoder_out"]
    if with_images:
        expected = heads.mim_head(states)[:, 1:5][images.hidden]
        assert torch.allclose(predictions["image"].logits, expected, atol=1e-6)
        assert torch.equal(predictions["image"].targets, images.codes[images.hidden])
    if with_texts:
        expected = heads.mlm_head(states)[:, -7:][texts.hidden]
        assert torch.allclose(predictions["text"].logits, expected, atol=1e-6)
        assert torch.equal(predictions["text"].targets, texts.targets[texts.hidden])


def test_unmasked_targets_do_not_enter_the_loss() -> None:
    backbone, heads = tiny_model()
    images, texts = batch()
    other_texts = texts._replace(targets=torch.where(texts.hidden, texts.targets, 50))
    other_images = images._replace(codes=torch.where(images.hidden, images.codes, 7))
    for part, first, second in (
        ("text", {"texts": texts}, {"texts": other_texts}),
        ("image", {"images": images}, {"images": other_images}),
    ):
        losses = [
            masked_prediction_loss(*predict_masked(backbone, heads, **kind)[part]) for kind in (first, second)
        ]  # type: ignore[arg-type]
        assert torch.equal(*losses)


def test_hidden_content_does_not_reach_the_model() -> None:
    """What lies under a mask, in either modality, changes no logit; what lies beside it does, across modalities."""
    backbone, heads = tiny_model()
    images, texts = batch()
    logits = predict_masked(backbone, heads, images=images, texts=texts)["text"].logits
    pixels = images.hidden.reshape(-1, 1, 2, 2).repeat_interleave(16, 2).repeat_interleave(16, 3)
    under = images._replace(images=torch.where(pixels, 9.0, images.images))
    beside = images._replace(images=torch.where(pixels, images.images, 9.0))
    assert torch.equal(predict_masked(backbone, heads, images=under, texts=texts)["text"].logits, logits)
    assert not torch.allclose(
        predict_masked(backbone, heads, images=beside, texts=texts)["text"].logits, logits
    )


def test_matching_reads_three_pairs_per_item_from_the_text_state() -> None:
    backbone, heads = tiny_model()
    images, texts = batch(4)
    plain = Texts(texts.targets, texts.padding_mask)
    pairs = embed_pairs(backbone, heads, images.images, plain)
    logits = match_pairs(
        backbone, heads, images.images, plain, pairs, generator=torch.Generator().manual_seed(0)
    )
    assert logits.shape == (12, 2)
    fused = backbone(images.images, plain.ids, plain.padding_mask)["encoder_out"]
    assert torch.allclose(logits[:4], heads.itm_head(fused[:, 5]), atol=1e-6)


def coloured_pairs(count: int) -> tuple[torch.Tensor, Texts]:
    """Images of one colour each, and as many different texts."""
    colours = torch.tensor(list(COLOURS.values())[:count]) / 127.5 - 1
    _, texts = batch(count, seed=3)
    return colours[:, :, None, None].expand(-1, -1, 32, 32).contiguous(), Texts(
        texts.targets, texts.padding_mask
    )


def test_contrast_overfits_eight_pairs() -> None:
    backbone, heads = tiny_model(1, depth=1)
    images, texts = coloured_pairs(8)
    optimiser = torch.optim.AdamW([*backbone.parameters(), *heads.parameters()], lr=3e-3)
    hits = {"ir@1": 0.0, "tr@1": 0.0}
    for _ in range(200):
        pairs = embed_pairs(backbone, heads, images, texts)
        hits = image_text_recall((pairs.images @ pairs.texts.T).detach().numpy(), range(8), (1,))
        if min(hits.values()) == 1.0:
            break
        optimiser.zero_grad()
        image_text_contrast(heads, pairs).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert hits == {"ir@1": 1.0, "tr@1": 1.0}


def test_matching_overfits_against_its_hard_negatives() -> None:
    """Far below ln 3 - (2/3) ln 2 = 0.637, the loss of knowing the shares alone."""
    backbone, heads = tiny_model(1)
    images, texts = coloured_pairs(3)
    optimiser = torch.optim.AdamW([*backbone.parameters(), *heads.parameters()], lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    loss = torch.tensor(1.0)
    for _ in range(300):
        pairs = embed_pairs(backbone, heads, images, texts)
        loss = matching_loss(match_pairs(backbone, heads, images, texts, pairs, generator=generator))
        if loss < 0.1:
            break
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert loss < 0.1
