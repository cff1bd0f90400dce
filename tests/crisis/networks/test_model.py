"""Missing modalities, and a task that needs both: text and image each tell nothing, together everything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mca_perception.backbone import NoBackbone, create_backbone
from mca_perception.crisis.features import NgramConfig
from mca_perception.crisis.networks.encoders import ImageEncoder, NgramEncoder, TextInputs
from mca_perception.crisis.networks.fusion import MissingModalities
from mca_perception.crisis.networks.model import CrisisInputs, CrisisModel
from mca_perception.errors import BackboneError, RecipeError

WIDTH = 16
WORDS = (("flood", "storm", "quake"), ("dinner", "concert", "football"))


class TinyImages(nn.Sequential):
    """8 x 8 pixels to a vector."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(32, WIDTH))


def encoders() -> tuple[NgramEncoder, ImageEncoder]:
    return NgramEncoder(NgramConfig(words=1, characters=None, buckets=64), WIDTH), ImageEncoder(
        TinyImages(), WIDTH
    )


def build(
    modalities: tuple[str, ...], classes: int = 2, fusion: str = "dense"
) -> tuple[CrisisModel, NgramEncoder]:
    text, image = encoders()
    model = CrisisModel(
        classes,
        dict.fromkeys(modalities, WIDTH),
        text_encoder=text if "text" in modalities else None,
        image_encoder=image if "image" in modalities else None,
        text_head="dense_3",
        fusion=fusion,
    )
    return model, text


def xor_posts(count: int, seed: int, encoder: NgramEncoder) -> tuple[CrisisInputs, Tensor]:
    """Posts whose class is whether topic of the text and brightness of the image differ."""
    generator = torch.Generator().manual_seed(seed)
    topic, bright = torch.randint(2, (2, count), generator=generator)
    choice = torch.randint(3, (count,), generator=generator)
    texts = [f"{WORDS[t][c]} today" for t, c in zip(topic.tolist(), choice.tolist(), strict=True)]
    noise = torch.randint(0, 60, (count, 3, 8, 8), generator=generator)
    images = (noise + 150 * bright.view(-1, 1, 1, 1)).to(torch.uint8)
    everywhere = torch.ones(count, dtype=torch.bool)
    return CrisisInputs(
        encoder.prepare(texts), images, {"text": everywhere, "image": everywhere}
    ), topic ^ bright


def accuracy_after_training(modalities: tuple[str, ...]) -> tuple[float, CrisisModel, NgramEncoder]:
    torch.manual_seed(0)
    model, encoder = build(modalities)
    backbone = NoBackbone()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    inputs, labels = xor_posts(256, 1, encoder)
    model.train()
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(backbone, inputs), labels).backward()
        optimiser.step()
    model.eval()
    test, truth = xor_posts(512, 2, encoder)
    with torch.inference_mode():
        right = (model(backbone, test).argmax(1) == truth).float().mean()
    return float(right), model, encoder


def test_fusion_solves_xor_of_modalities() -> None:
    accuracy, model, encoder = accuracy_after_training(("text", "image"))
    assert accuracy > 0.95
    # What is missing makes the answer a coin toss, not an error.
    test, truth = xor_posts(512, 3, encoder)
    for lost in ("text", "image"):
        gaps = CrisisInputs(
            test.text, test.images, {**test.present, lost: torch.zeros(512, dtype=torch.bool)}
        )
        with torch.inference_mode():
            logits = model(NoBackbone(), gaps)
        assert torch.isfinite(logits).all()
        assert 0.3 < float((logits.argmax(1) == truth).float().mean()) < 0.7


@pytest.mark.parametrize("modality", ["text", "image"])
def test_one_modality_cannot_solve_it(modality: str) -> None:
    accuracy, _, _ = accuracy_after_training((modality,))
    assert 0.35 < accuracy < 0.65


@pytest.mark.parametrize("fusion", ["dense", "conv"])
@pytest.mark.parametrize("lost", ["text", "image"])
def test_a_missing_modality_has_no_influence(fusion: str, lost: str) -> None:
    torch.manual_seed(0)
    model, encoder = build(("text", "image"), fusion=fusion)
    model.eval()
    posts, _ = xor_posts(2, 0, encoder)
    others, _ = xor_posts(2, 5, encoder)
    assert posts.text is not None
    assert others.text is not None
    absent = {**posts.present, lost: torch.tensor([False, False])}
    changed_text = others.text if lost == "text" else posts.text
    changed_images = others.images if lost == "image" else posts.images
    with torch.inference_mode():
        one = model(NoBackbone(), CrisisInputs(posts.text, posts.images, absent))
        other = model(NoBackbone(), CrisisInputs(changed_text, changed_images, absent))
        complete = model(NoBackbone(), posts)
    assert torch.equal(one, other)
    assert not torch.allclose(one, complete)


def test_modality_dropout_never_takes_both_and_only_in_training() -> None:
    torch.manual_seed(0)
    missing = MissingModalities({"text": 1, "image": 1}, dropout=0.15)
    ones = {"text": torch.ones(20_000, 1), "image": torch.ones(20_000, 1)}
    present = {name: torch.ones(20_000, dtype=torch.bool) for name in ones}
    kept = [vector[:, 0] == 1 for vector in missing.train()(ones, present)]
    assert (kept[0] | kept[1]).all()
    assert [float((~mask).float().mean()) for mask in kept] == pytest.approx([0.15, 0.15], abs=0.01)
    assert all((vector == 1).all() for vector in missing.eval()(ones, present))
    assert list(missing.absent) == ["text", "image"]
    present["text"] = torch.zeros(20_000, dtype=torch.bool)
    assert (missing.train()(ones, present)[1] == 1).all()


def test_a_model_of_one_modality_refuses_posts_without_it() -> None:
    model, encoder = build(("text",))
    posts, _ = xor_posts(2, 0, encoder)
    with pytest.raises(RecipeError, match="a model of text alone"):
        model(NoBackbone(), CrisisInputs(posts.text, None, {"text": torch.tensor([True, False])}))


@pytest.mark.parametrize(
    ("modalities", "joint"),
    [(("text",), False), (("image",), False), (("text", "image"), False), (("text", "image"), True)],
)
def test_on_the_shared_backbone(modalities: tuple[str, ...], joint: bool) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(
        "beit3_nano_patch16",
        img_size=32,
        modalities=("vision", "text"),
        embed_dim=24,
        num_heads=2,
        ffn_dim=32,
        depth=2,
    )
    model = CrisisModel(
        5, dict.fromkeys(modalities, 24), text_head="dense_3", text_length=6, joint=joint
    ).eval()
    ids = torch.tensor([[0, 94, 1127, 9, 2, 1], [0, 94, 2, 1, 1, 1]])
    text = TextInputs(ids, (ids != 1).float())
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    present = {"text": torch.tensor([True, True]), "image": torch.tensor([True, len(modalities) == 1])}
    logits = model(backbone.eval(), CrisisInputs(text, images, present))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in backbone.parameters())


def test_no_backbone_says_what_is_missing() -> None:
    model = CrisisModel(2, {"text": 8})
    inputs = CrisisInputs(
        TextInputs(torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2)),
        None,
        {"text": torch.tensor([True])},
    )
    with pytest.raises(BackboneError, match=r"backbone\.name"):
        model(NoBackbone(), inputs)
