"""Training of the language side: U1, U2 and U7 of the specification of retrieval, and the way from run to search."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mca_perception.backbone import CONFIGS, BEiT3, create_backbone
from mca_perception.cli.main import app
from mca_perception.errors import RecipeError, RetrievalError
from mca_perception.pretraining.model import PretrainingHeads
from mca_perception.retrieval import compact
from mca_perception.retrieval.bundle import RetrievalBundle
from mca_perception.retrieval.encoder import DualEncoder
from mca_perception.retrieval.indexing import index_images
from mca_perception.retrieval.losses import document_image_loss
from mca_perception.retrieval.recipe import RetrievalRecipe
from mca_perception.retrieval.sources import FolderSource
from mca_perception.retrieval.store import RetrievalStore
from mca_perception.retrieval.task import freeze_for
from mca_perception.training.recipe import Recipe
from mca_perception.training.retrieval_bundling import bundle_dual_encoder
from mca_perception.training.run import run_recipe
from tests.support.pretraining import TINY, tiny_model, write_pairs, write_tokenizer

pytestmark = pytest.mark.xdist_group("retrieval-training")


def numpy_loss(texts, images, scale: float, same) -> float:
    """Symmetric cross-entropy by hand; pairs that share a text or an image do not repel each other."""
    logits = scale * texts @ images.T
    total = 0.0
    for b in range(len(texts)):
        row = [j for j in range(len(texts)) if j == b or not same[b, j]]
        column = [i for i in range(len(texts)) if i == b or not same[i, b]]
        total -= logits[b, b] - np.log(np.exp(logits[b, row]).sum())
        total -= logits[b, b] - np.log(np.exp(logits[column, b]).sum())
    return total / (2 * len(texts))


@pytest.mark.parametrize("shared", [(), ((0, 1),), ((0, 2), (1, 2))])
def test_u2_the_loss_is_symmetric_cross_entropy_without_duplicates(shared) -> None:
    rng = np.random.default_rng(1)
    texts, images = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 3, 5))
    )
    same = np.eye(3, dtype=bool)
    for i, j in shared:
        same[i, j] = same[j, i] = True
    found = document_image_loss(
        torch.from_numpy(texts), torch.from_numpy(images), torch.tensor(4.0), torch.from_numpy(same)
    )
    assert float(found) == pytest.approx(numpy_loss(texts, images, 4.0, same), abs=1e-5)
    alone = document_image_loss(
        torch.ones(1, 2), torch.ones(1, 2), torch.tensor(4.0), torch.ones(1, 1).bool()
    )
    assert float(alone) == 0


@pytest.mark.parametrize(("name", "millions"), [("beit3_base_patch16", 86.5), ("beit3_large_patch16", 304.7)])
def test_u1_the_language_side_has_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, modalities=("vision", "text"))
        heads = PretrainingHeads(backbone.embed_dim, modalities=("vision", "text"), vocab_size=64010, codes=8)
    freeze_for("language", backbone, heads)
    parameters = {**dict(backbone.named_parameters()), **dict(heads.named_parameters())}
    trained = {n: p for n, p in parameters.items() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert not [n for n in trained if "vision" in n or n.startswith("text_embed") or ".A." in n]


def test_shared_attention_cannot_keep_image_vectors() -> None:
    backbone, heads = tiny_model(attention="shared")
    assert isinstance(backbone, BEiT3)
    with pytest.raises(RetrievalError, match="shares attention"):
        freeze_for("language", backbone, heads)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainable": "all", "image_vectors": "s"}, "those of a frozen image side"),
        ({"objectives": {"itc": 1.0, "mlm": 1.0}}, "contrast alone"),
        ({"trainable": "vision"}, "language"),
    ],
)
def test_recipes_that_contradict_themselves(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetrievalRecipe.model_validate({"data": "d", "tokenizer": "t", **settings})


def recipe(folder: Path, name: str, section: str, init_from: Path | None = None, **settings) -> Recipe:
    return Recipe.model_validate(
        {
            "name": name,
            "init_from": init_from,
            "backbone": {
                "name": "beit3_tiny",
                "img_size": 32,
                "modalities": ["vision", "text"],
                "vocab_size": 96,
            },
            section: {
                "data": folder / "pairs",
                "validation_split": "test",
                "tokenizer": folder / "tiny.spm",
                "text_length": 12,
                "image_size": 32,
                "batch_size": 4,
                "workers": 0,
                **({"objectives": {"itc": 1.0}} if section == "pretraining" else {}),
                **settings,
            },
            "optimiser": {"warmup_steps": 1, "ema_decay": 0.0, "lr": 1e-3},
            "budget": {"max_steps": 2},
        }
    )


@pytest.mark.slow
def test_u1_from_a_run_to_a_search_and_on_with_the_language_side(tmp_path: Path, monkeypatch) -> None:
    """Pre-train, export, index, train the language side on cached vectors, export: image vectors stay bit-identical."""
    monkeypatch.setitem(CONFIGS, "beit3_tiny", TINY)
    write_tokenizer(tmp_path / "tiny.spm")
    write_pairs(tmp_path / "pairs", held_out=2)
    run_recipe(recipe(tmp_path, "start", "pretraining"), tmp_path / "start")
    first = bundle_dual_encoder(tmp_path / "start", tmp_path / "first", version="1")
    encoder = DualEncoder(first)
    # With int8 weights it is another model with nearly the same vectors; those of so small a one are all small.
    monkeypatch.setattr(compact, "SMALLEST_WEIGHT", 64)
    made = CliRunner().invoke(
        app, ["export", str(tmp_path / "first"), "--precision", "int8", "--out", str(tmp_path / "small")]
    )
    assert made.exit_code == 0, made.output
    small = RetrievalBundle.open(tmp_path / "small")
    assert "weights.safetensors" not in small.manifest.files
    assert small.path_of("text").stat().st_size < first.path_of("text").stat().st_size
    assert small.image_fingerprint != first.image_fingerprint
    words = ["a red box of tea", "something else"]
    cosines = (DualEncoder(small).encode_texts(words) * encoder.encode_texts(words)).sum(axis=1)
    assert 0.99 < cosines.min() < 1
    source = FolderSource(tmp_path / "pairs" / "images")
    options = {"image_model": first.image_fingerprint, "dimension": encoder.dimension, "dtype": "float32"}
    with RetrievalStore.write(tmp_path / "store", **options) as store:
        assert index_images(source, store, encoder).added == 8
        before = hashlib.sha256(store.vectors(slice(0, 8)).tobytes()).hexdigest()
    cached = recipe(tmp_path, "tuned", "retrieval", tmp_path / "start", image_vectors=tmp_path / "store")
    run_recipe(cached, tmp_path / "tuned")
    second = bundle_dual_encoder(tmp_path / "tuned", tmp_path / "second", version="1")
    assert second.image_fingerprint == first.image_fingerprint
    assert second.text_fingerprint != first.text_fingerprint
    with RetrievalStore.write(tmp_path / "again", **options) as store:
        index_images(source, store, DualEncoder(second))
        assert hashlib.sha256(store.vectors(slice(0, 8)).tobytes()).hexdigest() == before
    texts = ["a red box of tea", "a blue box"]
    assert not np.allclose(DualEncoder(second).encode_texts(texts), encoder.encode_texts(texts), atol=1e-4)
    # Vectors of another image side are found out before the first step.
    other = recipe(tmp_path, "other", "retrieval", image_vectors=tmp_path / "store", trainable="text")
    with pytest.raises(RetrievalError, match="vectors of another image side"):
        run_recipe(other, tmp_path / "other")
    with pytest.raises(RecipeError, match="holds no weights"):
        bundle_dual_encoder(tmp_path / "other", tmp_path / "third", version="1")
