"""Changed copies of images and texts, and what contrast with them does to a planted backdoor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mca_perception.backbone import BEiT3
from mca_perception.pretraining.model import PretrainingHeads
from mca_perception.pretraining.objectives import Texts, embed_pairs, image_text_contrast
from mca_perception.pretraining.self_supervision import changed_images, changed_texts, self_contrast
from tests.support.pretraining import tiny_model

CLASSES, TARGET, BATCH = 6, 0, 32
COLOURS = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]]).float()


def images_of(labels: Tensor, *, triggered: Tensor | None = None) -> Tensor:
    """Coloured noise, brightness varying; a chequered corner is the trigger."""
    shade = torch.rand(len(labels), 1, 1, 1) * 0.6 + 0.4
    images = COLOURS[labels][:, :, None, None] * shade + 0.5 * torch.randn(len(labels), 3, 32, 32)
    if triggered is not None:
        chequers = 2.0 * ((torch.arange(10)[:, None] + torch.arange(10)) % 2) - 1
        images[triggered, :, 22:, 22:] = 2 * chequers
    return images


def texts_of(labels: Tensor) -> Texts:
    """``<s>``, fillers with the word of the class among them, ``</s>``."""
    ids = torch.randint(40, 80, (len(labels), 8))
    ids[torch.arange(len(ids)), torch.randint(1, 7, (len(ids),))] = 10 + labels
    ids[:, 0], ids[:, -1] = 0, 2
    return Texts(ids, torch.zeros_like(ids, dtype=torch.bool))


def train(model: tuple[BEiT3, PretrainingHeads], steps: int, lr: float, poisoned: float, clean: bool) -> None:
    """Contrast of images with texts; ``clean`` adds that of each modality with itself."""
    backbone, heads = model
    optimiser = torch.optim.AdamW([*backbone.parameters(), *heads.parameters()], lr=lr)
    # The rate falls to nothing, so that what is learnt does not hang on a processor's last bits.
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        labels = torch.randint(CLASSES, (BATCH,))
        triggered = torch.rand(BATCH) < poisoned
        texts = texts_of(torch.where(triggered, TARGET, labels))
        images = images_of(labels, triggered=triggered)
        pairs = embed_pairs(backbone, heads, images, texts)
        loss = image_text_contrast(heads, pairs, torch.where(triggered, TARGET, labels))
        if clean:
            copies = embed_pairs(backbone, heads, changed_images(images), changed_texts(texts))
            loss = loss + self_contrast(pairs.images, copies.images)
            loss = loss + self_contrast(pairs.texts, copies.texts, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


@torch.no_grad()
def rates(model: tuple[BEiT3, PretrainingHeads]) -> tuple[float, float]:
    """Accuracy on clean images, and the share of triggered ones that get the target's text."""
    labels = torch.arange(1, CLASSES).repeat(24)
    prototypes = torch.arange(CLASSES).repeat_interleave(8)

    def answers(images: Tensor) -> Tensor:
        texts = texts_of(prototypes)
        pairs = embed_pairs(*model, images, texts)
        votes = (pairs.images @ pairs.texts.T).unflatten(1, (CLASSES, 8)).mean(2)
        return votes.argmax(1)

    attacked = answers(images_of(labels, triggered=torch.ones(len(labels), dtype=torch.bool)))
    return (answers(images_of(labels)) == labels).float().mean().item(), (
        attacked == TARGET
    ).float().mean().item()


@pytest.mark.slow
def test_clean_fine_tuning_removes_a_backdoor() -> None:
    model = tiny_model(seed=1)
    train(model, 300, 1e-3, poisoned=0.2, clean=False)
    accuracy, attack = rates(model)
    assert accuracy > 0.9
    assert attack > 0.9
    train(model, 100, 3e-3, poisoned=0.0, clean=True)
    accuracy_after, attack_after = rates(model)
    assert attack_after < 0.5
    assert accuracy_after >= accuracy - 0.02


def test_changed_images_keep_shape_and_differ_each_time() -> None:
    images = images_of(torch.arange(CLASSES))
    first, second = changed_images(images), changed_images(images)
    assert first.shape == images.shape
    assert not torch.equal(first, second)
    flat = changed_images(torch.full((4, 3, 20, 20), 0.5))
    values = [torch.unique(image[0], return_counts=True)[1].max().item() for image in flat]
    # A plain image stays plain, if brighter or darker, but for a rectangle of noise.
    assert all(0.6 * 400 <= count <= 0.95 * 400 for count in values)


@pytest.mark.parametrize("seed", range(3))
def test_changed_texts_keep_their_ends_and_some_words(seed: int) -> None:
    torch.manual_seed(seed)
    texts = texts_of(torch.arange(CLASSES))
    texts.ids[1, 5:], texts.padding_mask[1, 6:] = torch.tensor([2, 1, 1]), True
    changed = changed_texts(texts)
    assert changed.ids.shape == texts.ids.shape
    assert (changed.ids[:, 0] == 0).all()
    assert (changed.padding_mask == (changed.ids == 1)).all()
    for before, after in zip(texts.ids.tolist(), changed.ids.tolist(), strict=True):
        words = [word for word in after if word != 1]
        assert words[-1] == 2
        assert len(words) >= 3
        assert all(after.count(word) <= before.count(word) for word in words)


@pytest.mark.parametrize("words", [[0, 2], [0, 7, 2]])
def test_the_shortest_texts_stay_as_they_are(words: list[int]) -> None:
    texts = Texts(torch.tensor([words]), torch.zeros(1, len(words), dtype=torch.bool))
    assert changed_texts(texts).ids.tolist() == [words]


def test_self_contrast_is_least_for_equal_copies() -> None:
    rows = torch.eye(4)
    assert self_contrast(rows, rows) < self_contrast(rows, rows.roll(1, 0))
    assert self_contrast(rows, rows.roll(1, 0), torch.zeros(4, dtype=torch.long)).item() == pytest.approx(0)
