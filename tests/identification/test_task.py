"""Identification training on the public layout with all its oddities, and what its options do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mca_perception.backbone.protocol import Backbone, Normalisation
from mca_perception.contrastive import cached_backward
from mca_perception.identification.data import ContainerSampler
from mca_perception.identification.index import build_index, load_identification
from mca_perception.identification.recipe import IdentificationRecipe
from mca_perception.identification.splitting import held_out_picks
from mca_perception.identification.task import IdentificationTask
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.identification_evaluation import evaluate_identification
from mca_perception.training.recipe import load_recipe
from mca_perception.training.run import run_recipe
from tests.support.bundles import write_colour_bundle
from tests.support.odd_picks import write_odd_pick_set, write_pick

CPU = torch.device("cpu")


class PatchBackbone(Backbone):
    """Mean colours of 16 x 16 patches through two layers: an encoder that takes no time."""

    embed_dim, patch_size, img_size = 12, 16, 32
    modalities = ("vision",)
    normalisation = Normalisation((0.5,) * 3, (0.5,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 12))

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        patches = nn.functional.avg_pool2d(images, 16).flatten(2).transpose(1, 2)
        tokens = self.layers(patches)
        return {"encoder_out": torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The odd set with some more picks to train on, each in a container of its own."""
    root = tmp_path_factory.mktemp("odd") / "set"
    write_odd_pick_set(root)
    for i in range(8):
        views = ("PickRGB", "ToteWallRGB", "FarTrayRGB")[: 1 + i % 3]
        write_pick(root, f"01{i:02d}", truth=f"00{7 + i % 2}", views=views, container=("007", "008", f"x{i}"))
    build_index(root)
    return root


def make_task(data: Path, **settings: Any) -> IdentificationTask:
    torch.manual_seed(0)
    defaults = {"data": data, "train_split": "all", "crop_size": 32, "embedding_dim": 8, "workers": 0}
    recipe = IdentificationRecipe.model_validate({**defaults, "batch_size": 4, **settings})
    return IdentificationTask(recipe, PatchBackbone.embed_dim, 0)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"loss": "sigmoid", "poolers": "separate"},
    {"loss": "supcon", "views": 3},
    {"loss": "clce", "views": 2, "chunk_size": 3},
    {"loss": "scl_rhe", "references": 2, "reference_fusion": "attention"},
    {"views": 3, "trainable": "fusion", "references": 3, "reference_fusion": "mean"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains_and_validates(data, options) -> None:
    task, backbone = make_task(data, **options), PatchBackbone()
    batch = next(iter(task.batches(1)))
    losses = task.losses(backbone, batch, CPU)
    name = task.recipe.loss
    fused_only = task.recipe.trainable == "fusion"
    expected = ([] if fused_only else [name]) + ([f"{name}_fused"] if task.recipe.views > 1 else [])
    assert list(losses) == expected
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in task.head.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert all(n.startswith(("fusion.", "loss.")) for n in gradients) == fused_only
    metrics = task.validate(backbone.eval(), CPU)
    assert set(metrics) == {"recall@1"} | (
        {f"recall@1_views_{task.recipe.views}"} if task.recipe.views > 1 else set()
    )
    assert all(0 <= value <= 1 for value in metrics.values())


def test_skipped_picks_are_counted(data) -> None:
    task = make_task(data)
    assert sum(task.skipped["train"].values()) == 6
    ids = {pick.id for pick in [*task.dataset.picks, *task.validation]}
    assert "0011" not in ids  # its product has no references
    assert len(task.dataset.picks) + len(task.validation) == 11


def test_missing_and_left_out_views_are_marked(data) -> None:
    always = make_task(data, views=3, view_dropout=0.0)
    for i, pick in enumerate(always.dataset.picks):
        pair = always.dataset[i]
        assert pair.present.sum() == min(3, len(pick.views))
        assert bool(pair.present[pair.single])
        assert (pair.query[~pair.present] == 127).all()
    often = make_task(data, views=3, view_dropout=0.9)
    counts = [int(often.dataset[i].present.sum()) for i in range(len(often.dataset))]
    assert min(counts) == 1
    assert np.mean(counts) < 2


def test_a_photo_is_never_its_own_reference(data, monkeypatch) -> None:
    task = make_task(data, references=2, reference_fusion="mean", first_reference=1.0)
    pick = task.dataset.picks[0]
    own = pick.views["PickRGB"]
    others = [own.parent / "a.jpg", own.parent / "b.jpg", own.parent / "c.jpg"]
    monkeypatch.setitem(task.references, pick.product_id, [others[0], own, *others[1:]])
    for seed in range(20):
        drawn = task.dataset._draw_references(pick, np.random.default_rng(seed))
        assert drawn[0] == others[0]
        assert own not in drawn


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_give_the_gradients_of_the_whole_batch(data, chunk) -> None:
    whole, chunked = make_task(data, views=3), make_task(data, views=3, chunk_size=chunk)
    batch = next(iter(whole.batches(1)))
    gradients = []
    for task in (whole, chunked):
        torch.manual_seed(5)
        backbone = PatchBackbone().eval()  # no dropout: chunks draw other random numbers than the whole
        sum(task.losses(backbone, batch, CPU).values()).backward()
        gradients.append([p.grad for p in (*backbone.parameters(), *task.head.parameters())])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_chunks_are_gradient_caching(data) -> None:
    """The same gradients as the library's explicit form, with dropout, whose random numbers are drawn again."""
    task = make_task(data, chunk_size=4)
    batch = next(iter(task.batches(1)))
    products = torch.as_tensor(batch.product)
    gradients = []
    for explicit in (False, True):
        torch.manual_seed(5)
        backbone = PatchBackbone()
        task.head.zero_grad()
        if explicit:

            def encode(crops: Tensor, backbone: Backbone = backbone) -> tuple[Tensor]:
                images = crops.float() / 127.5 - 1
                return (task.head(backbone(images)["encoder_out"]),)

            crops = torch.cat([batch.query[:, 0], batch.reference[:, 0]])
            cached_backward(encode, crops.split(4), lambda rows: task.head.loss(*rows.chunk(2), products))
        else:
            (loss,) = task.losses(backbone, batch, CPU).values()
            loss.backward()
        gradients.append([p.grad.clone() for p in (*backbone.parameters(), *task.head.parameters())])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_sampler_keeps_containers_together_and_mixes_within(data) -> None:
    picks = make_task(data).dataset.picks
    first, second = (list(ContainerSampler(picks, 4, seed)) for seed in (1, 2))
    assert first != second
    assert all(len(batch) == 4 for batch in first)
    flat = [i for batch in first for i in batch]
    assert len(set(flat)) == len(flat)


def test_one_container_is_held_out_by_pick(data) -> None:
    picks = make_task(data).dataset.picks
    shared = [type(p)(p.id, p.product_id, ("007",), p.views, p.polygons) for p in picks]
    train, held_out = held_out_picks(shared, 0.3, 0)
    assert len(held_out) == round(0.3 * len(picks))
    assert len(train) + len(held_out) == len(picks)


@pytest.mark.xdist_group("training")
def test_odd_set_runs_through_index_training_and_evaluation(data, tmp_path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
name: odd
backbone: {{name: beit3_nano_patch16, img_size: 32}}
identification: {{data: {data}, train_split: all, crop_size: 32, batch_size: 4, workers: 0, views: 3}}
optimiser: {{warmup_steps: 1}}
budget: {{max_steps: 2}}
"""
    )
    state = run_recipe(load_recipe(recipe), tmp_path / "run")
    assert state.step == 2
    assert set(state.metrics) == {"identification/recall@1", "identification/recall@1_views_3"}
    bundle = write_colour_bundle(tmp_path / "colours")
    run = evaluate_identification(
        PerceptionPipeline.from_bundle(bundle.path), load_identification(data, split="testset"), views=3
    )
    assert run.metrics["queries"] == 4
    assert run.metrics["picks"] == 5
    assert run.metrics["skipped"] == {"pick folder missing": 1}
    assert sum(run.metrics["not_ranked"].values()) == 3  # picks 0003, 0004 and 0005
    json.dumps(run.metrics)
