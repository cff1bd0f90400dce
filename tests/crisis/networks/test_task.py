"""Neural models in the training loop: encoders by name, posts with and without images, evaluation of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from mca_perception.cli import evaluate
from mca_perception.crisis.features import NgramConfig
from mca_perception.crisis.networks.encoders import create_image_encoder, create_text_encoder, read_vectors
from mca_perception.crisis.networks.multi_label import (
    InformationHead,
    InformationOutputs,
    information_loss,
    labels_from,
    positive_weights,
)
from mca_perception.datasets.crisismmd import read_split
from mca_perception.errors import RecipeError
from mca_perception.training.model import build
from mca_perception.training.recipe import Recipe, load_recipe
from mca_perception.training.run import run_recipe
from mca_perception.training.schedule import parameter_groups
from tests.support.crisis import write_crisismmd
from tests.support.datasets import write_image

TINY_BEIT3 = {"name": "beit3_nano_patch16", "img_size": 32, "modalities": ["vision", "text"]}
NGRAMS = {"encoder": "ngrams", "head": "dense_1", "features": {"buckets": 256, "words": 1}, "width": 8}


def recipe(data: Path, *, backbone: dict[str, Any] | None = None, **crisis: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "toy",
            "backbone": backbone or {"name": "none"},
            "crisis": {"data": data, "task": "informative", "text": NGRAMS, "batch_size": 8, **crisis},
            "optimiser": {"lr": 0.02, "warmup_steps": 5, "ema_decay": 0.8, "weight_decay": 0.0},
            "budget": {"max_steps": 60, "validate_steps": 30, "monitor": "crisis/weighted_f1"},
            "precision": "fp32",
            "device": "cpu",
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Posts of which every other one has an image."""
    folder = write_crisismmd(tmp_path_factory.mktemp("crisismmd"), rows=24)
    for split in ("train", "dev", "test"):
        for post in read_split(folder, "informative", split).posts[::2]:
            write_image(folder / post.image, np.full((20, 30, 3), 90, np.uint8))
    return folder


def test_training_and_evaluation_of_a_run(data: Path, tmp_path: Path) -> None:
    state = run_recipe(recipe(data), tmp_path / "run")
    assert state.metrics["crisis/weighted_f1"] > 0.9
    arguments = [
        "crisismmd",
        "--data",
        data,
        "--split",
        "dev",
        "--model",
        tmp_path / "run",
        "--out",
        tmp_path / "out",
    ]
    result = CliRunner().invoke(evaluate.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["weighted_f1"] == pytest.approx(state.metrics["crisis/weighted_f1"], abs=1e-4)


@pytest.mark.parametrize(
    ("crisis", "train", "skipped"),
    [
        ({}, 24, {}),
        ({"text": None, "image": {"encoder": "torchvision:resnet18", "size": 32}}, 12, {"image missing": 12}),
        ({"image": {"encoder": "torchvision:resnet18", "size": 32}}, 24, {}),
    ],
)
def test_posts_with_missing_images(
    data: Path, crisis: dict[str, Any], train: int, skipped: dict[str, int]
) -> None:
    pytest.importorskip("torchvision")
    model, (task,) = build(recipe(data, **crisis))
    assert len(task.dataset) == train  # type: ignore[attr-defined]
    assert task.skipped["train"] == skipped
    batch = next(iter(task.batches(0)))
    loss = task.losses(model.backbone, batch, torch.device("cpu"))["cross_entropy"]
    assert torch.isfinite(loss)
    if "image" in crisis and crisis.get("text", 0) is not None:
        assert not batch.inputs.present["image"].all()
        assert not batch.inputs.images[~batch.inputs.present["image"]].any()


def test_mca_on_the_shared_backbone_with_an_adapter(data: Path, shared_data: Path) -> None:
    settings = recipe(
        data,
        backbone=TINY_BEIT3,
        text={"encoder": "backbone", "tokenizer": shared_data / "beit3.spm", "length": 16},
        image={"encoder": "backbone", "size": 32},
        joint=True,
    )
    settings = Recipe.model_validate({**settings.model_dump(), "adapter": "multiway"})
    model, (task,) = build(settings)
    loss = task.losses(model.backbone, next(iter(task.batches(0))), torch.device("cpu"))["cross_entropy"]
    loss.backward()
    trained = {
        name for name, p in model.backbone.named_parameters() if p.grad is not None and p.requires_grad
    }
    assert trained
    assert sum(p.numel() for p in model.backbone.parameters() if p.requires_grad) < 0.2 * sum(
        p.numel() for p in model.backbone.parameters()
    )


def test_encoders_learn_at_their_own_rate(data: Path) -> None:
    model, _ = build(recipe(data, text={**NGRAMS, "lr_scale": 0.02}))
    scales = {
        id(parameter): group["lr_scale"]
        for group in parameter_groups(model, 0.0)
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert scales[id(parameter)] == (0.02 if "text_encoder" in name else 1.0)


@pytest.mark.slow
def test_transformers_encoder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "flood", "in", "town"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.BertTokenizer(vocab=dict(zip(words, range(8), strict=True))).save_pretrained(tmp_path)
    encoder = create_text_encoder(
        f"transformers:{tmp_path}",
        length=12,
        width=1,
        features=NgramConfig(),
        remove_stop_words=False,
        vocabulary=1,
    )
    inputs = encoder.prepare(["flood in town", ""])
    assert encoder.eval()(inputs).shape == (2, 12, 16)
    assert inputs.weights.sum(1).tolist() == [5, 2]


def test_word_vectors(tmp_path: Path) -> None:
    (tmp_path / "vectors.txt").write_text("3 2\nflood 1 2\ntown 3 4\nrare 5 6\n")
    assert list(read_vectors(tmp_path / "vectors.txt", 2)) == ["flood", "town"]
    encoder = create_text_encoder(
        f"vectors:{tmp_path / 'vectors.txt'}",
        length=4,
        width=1,
        features=NgramConfig(),
        remove_stop_words=False,
        vocabulary=3,
    )
    states = encoder(encoder.prepare(["Flood the town", "nothing known"]))
    assert states.shape == (2, 5, 2)
    assert states[0, 0].tolist() == [2, 3]
    assert states[0, 1].tolist() == [1, 2]
    assert not states[1].any()


@pytest.mark.parametrize("content", ["", "flood 1 2\ntown 1\n", "flood a b\n"])
def test_damaged_word_vectors(tmp_path: Path, content: str) -> None:
    (tmp_path / "vectors.txt").write_text(content)
    with pytest.raises(RecipeError, match=r"vectors\.txt"):
        read_vectors(tmp_path / "vectors.txt", 5)


@pytest.mark.parametrize(
    ("name", "width"),
    [("timm:resnet18", 512), ("torchvision:resnet18", 512), ("torchvision:mobilenet_v2", 1280)],
)
def test_image_encoders(name: str, width: int, tmp_path: Path) -> None:
    pytest.importorskip(name.partition(":")[0])
    encoder = create_image_encoder(name, None)
    assert encoder.width == width
    save_file(encoder.model.state_dict(), tmp_path / "weights.safetensors")
    again = create_image_encoder(name, tmp_path / "weights.safetensors").eval()
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(again(images), encoder.eval()(images))
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(RecipeError, match="of another model"):
        create_image_encoder(name, tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", ["resnet152", "timm:no_such_model", "torchvision:no_such_model"])
def test_unknown_image_encoders(name: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(RecipeError, match=r"unknown|no usable"):
        create_image_encoder(name, None)


@pytest.mark.parametrize(
    ("crisis", "message"),
    [
        ({"text": None}, "name text, image or both"),
        ({"text": {"encoder": "backbone"}}, "needs tokenizer"),
        ({"text": {"encoder": "backbone", "tokenizer": "x"}}, "crisis reads text with the backbone"),
        ({"joint": True}, "both encoders must be backbone"),
        ({"validation_split": "test"}, "would choose weights on the test split"),
    ],
)
def test_recipes_that_do_not_fit(data: Path, crisis: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(data, **crisis)


def test_unknown_text_encoder(data: Path) -> None:
    with pytest.raises(RecipeError, match="text encoder 'word2vec' is unknown"):
        build(recipe(data, text={"encoder": "word2vec"}))


@pytest.mark.parametrize("name", ["crisis_ngrams", "crisis_mca_text", "crisis_fusion", "crisis_mca"])
def test_recipes_of_the_repository(repository: Path, name: str) -> None:
    assert load_recipe(repository / "recipes" / f"{name}.yaml").crisis is not None


def test_information_head_and_loss_by_hand() -> None:
    torch.manual_seed(0)
    outputs = InformationHead(8)(torch.randn(2, 8))
    assert outputs.types.shape == (2, 25)
    assert ((outputs.priority > 0) & (outputs.priority < 1)).all()
    types = torch.zeros(2, 25)
    even = InformationOutputs(torch.zeros(2, 25), torch.tensor([0.25, 0.5]))
    gold = torch.tensor([0.75, float("nan")])
    assert information_loss(even, types, gold).item() == pytest.approx(0.5 * 25 * np.log(2) + 0.5 * 0.25)
    assert information_loss(even, types, torch.full((2,), float("nan"))).item() == pytest.approx(
        12.5 * np.log(2)
    )


def test_rare_types_weigh_more_up_to_a_limit() -> None:
    types = torch.zeros(100, 25)
    types[:50, 0] = 1
    types[:1, 1] = 1
    assert positive_weights(types)[:3].tolist() == [1, 50, 50]


def test_labels_are_never_empty() -> None:
    scores = torch.tensor([[0.6, 0.2, 0.7], [0.1, 0.3, 0.2]])
    assert labels_from(scores, torch.full((3,), 0.5)).tolist() == [[1, 0, 1], [0, 1, 0]]
