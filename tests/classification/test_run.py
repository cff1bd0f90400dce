"""Every method through `mca train`: stages, resuming, adapters, large batches in chunks, and the exported embedding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mca_perception.backbone.config import CONFIGS
from mca_perception.classification.data import ClassBalancedSampler, ViewDataset, hold_out
from mca_perception.classification.recipe import ViewAugmentation
from mca_perception.classification.task import ClassificationTask
from mca_perception.classification.views import changed_view, plain_view
from mca_perception.errors import DatasetError, RecipeError
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.training.bundling import bundle_run
from mca_perception.training.model import PerceptionModel, build
from mca_perception.training.recipe import Recipe, load_recipe
from mca_perception.training.run import load_run, read_log, run_recipe
from mca_perception.training.task import Task
from tests.support.labelled_images import write_colour_classes
from tests.support.pretraining import TINY

RECIPE = """
name: tiny
backbone: {{name: beit3_tiny, img_size: 32}}
classification:
  data: {data}
  method: {{name: {method}}}
  validation_fraction: 0.34
  image_size: 32
  batch_size: 6
  workers: 0
optimiser: {{warmup_steps: 1}}
budget: {{max_steps: 2, validate_steps: 100}}
precision: fp32
"""


@pytest.fixture(autouse=True, scope="module")
def _tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "beit3_tiny", replace(TINY, modalities=("vision",)))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classification")
    write_colour_classes(folder / "data", classes=4)
    return folder


def recipe(folder: Path, method: str, *changes: str) -> Recipe:
    path = folder / f"{method}.yaml"
    path.write_text(RECIPE.format(data=folder / "data", method=method))
    return load_recipe(path, list(changes))


def opened(settings: Recipe) -> tuple[PerceptionModel, ClassificationTask]:
    torch.manual_seed(0)
    model, tasks = build(settings)
    assert isinstance(tasks[0], ClassificationTask)
    return model, tasks[0]


def gradients(model: PerceptionModel, task: Task) -> tuple[dict[str, float], dict[str, Tensor]]:
    batch = next(iter(task.batches(1)))
    terms = task.losses(model.backbone, batch, torch.device("cpu"))
    sum(terms.values()).backward()  # type: ignore[union-attr]
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.item() for name, value in terms.items()}, found


@pytest.mark.parametrize(
    ("method", "batches", "seen", "term", "trained"),
    [
        ("cross_entropy", 0, 0, "cross_entropy", {"backbone", "classifier"}),
        ("clce", 0, 0, "clce", {"backbone", "classifier"}),
        ("ce_supcon", 0, 0, "ce_supcon", {"backbone", "classifier"}),
        ("lacvit", 2, 1, "lacvit", {"backbone", "projection"}),
        ("lacvit", 2, 2, "classifier", {"backbone", "classifier"}),
        ("supcon", 2, 0, "supcon", {"backbone", "projection"}),
        ("simclr", 2, 0, "simclr", {"backbone", "projection"}),
        ("scl_rhe", 2, 1, "scl_rhe", {"backbone", "projection"}),
        ("scl_rhe", 2, 2, "classifier", {"classifier"}),
    ],
)
def test_a_stage_trains_what_its_method_says(folder, method, batches, seen, term, trained) -> None:
    model, task = opened(recipe(folder, method, f"classification.method.contrastive_batches={batches}"))
    task.head.batches.fill_(seen)
    terms, found = gradients(model, task)
    assert list(terms) == [term]
    assert {name.split(".")[0 if name.startswith("backbone") else 2] for name in found} == trained
    assert int(task.head.batches) == seen + 1


@pytest.mark.parametrize("method", ["cross_entropy", "simclr", "supcon", "clce", "ce_supcon", "scl_rhe"])
def test_what_a_batch_was_contrasted_with_is_logged(folder: Path, method: str) -> None:
    stages = [] if method in ("cross_entropy", "clce", "ce_supcon") else ["contrastive_batches=9"]
    changes = [f"classification.method.{change}" for change in stages]
    model, task = opened(recipe(folder, method, *changes, "classification.images_per_class=2"))
    gradients(model, task)
    metrics = task.validate(model.backbone.eval(), torch.device("cpu"))
    logged = {name.removeprefix("batch_"): v for name, v in metrics.items() if name.startswith("batch_")}
    assert ("train_top1" in metrics) == (not stages)
    if method in ("cross_entropy", "simclr"):
        assert not logged
        return
    # Three classes of two images, two views each.
    counts = {name: logged[name] for name in ("contrasts", "valid", "positives", "negatives")}
    assert counts == {"contrasts": 12, "valid": 1, "positives": 3, "negatives": 8}
    assert 0 <= logged["positive_floored"] <= 1
    assert method == "scl_rhe" or not logged["positive_floored"] + logged["negative_floored"]


def test_a_classifier_of_directions_ignores_lengths(folder: Path) -> None:
    change = "classification.method.normalise_head_input=true"
    model, task = opened(recipe(folder, "clce", change))
    rows = torch.randn(5, task.head.classifier.in_features)
    assert torch.allclose(task.head.classifier(rows), task.head.classifier(0.01 * rows), atol=1e-5)
    _, found = gradients(model, task)
    assert found["heads.classification.classifier.scale"].abs() > 0
    plain = opened(recipe(folder, "clce"))[1].head.classifier
    assert not torch.allclose(plain(rows), plain(0.01 * rows), atol=1e-5)


def test_chunks_change_no_gradient(folder: Path) -> None:
    whole = gradients(*opened(recipe(folder, "clce")))
    parts = gradients(*opened(recipe(folder, "clce", "classification.chunk_size=5")))
    assert parts[0]["clce"] == pytest.approx(whole[0]["clce"], abs=1e-5)
    for name, gradient in whole[1].items():
        assert torch.allclose(parts[1][name], gradient, atol=1e-5), name


def test_a_run_resumes_in_its_stage_and_its_bundle_embeds(folder: Path, tmp_path: Path) -> None:
    settings = recipe(folder, "lacvit", "classification.method.contrastive_batches=3")
    out = tmp_path / "run"
    run_recipe(settings, out)
    longer = settings.model_copy(update={"budget": settings.budget.model_copy(update={"max_steps": 4})})
    state = run_recipe(longer, out, resume=True)
    assert state.step == 4
    assert int(load_file(out / "weights.safetensors")["heads.classification.batches"]) == 4
    metrics = read_log(out)[-1]
    names = ("top1", "probe_top1", "knn_top1")
    assert all(0 <= metrics[f"classification/{name}"] <= 1 for name in names)
    _, model, _, _ = load_run(out)
    bundle = bundle_run(out, tmp_path / "bundle", version="1")
    pipeline = PerceptionPipeline.from_bundle(bundle.path)
    image = np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)
    found = pipeline.embed_crops([pipeline.crop(image)])
    assert found.shape == (1, model.backbone.embed_dim)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-4)
    assert not any(name.startswith("heads.") for name in load_file(bundle.path / "weights.safetensors"))
    # Another run takes these weights, but begins with its own first stage.
    _, next_task = opened(longer.model_copy(update={"init_from": out}))
    assert int(next_task.head.batches) == 0


def test_adapters_train_on_a_frozen_backbone(folder: Path) -> None:
    model, task = opened(recipe(folder, "clce", "adapter=multiway"))
    _, found = gradients(model, task)
    assert any("adapter" in name for name in found)
    assert all("adapter" in name for name in found if name.startswith("backbone."))


def test_validation_data_may_be_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    write_colour_classes(tmp_path / "data" / "train", classes=3)
    write_colour_classes(tmp_path / "data" / "val", per_class=2, classes=4, seed=1)
    settings = recipe(
        folder, "clce", f"classification.data={tmp_path / 'data'}", "classification.validation_split=val"
    )
    _, task = opened(settings)
    assert (len(task.dataset), len(task.held_out[0]), len(task.classes)) == (18, 6, 3)
    assert task.skipped["validation"] == {"image of a class that is not trained on": 2}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (["classification.batch_size=64"], DatasetError, "16 training images for a batch of 64"),
        (["classification.image_size=40"], RecipeError, "image_size 40 is not a multiple"),
        (["classification.images_per_class=4"], RecipeError, "no multiple of images_per_class"),
        (["classification.method.contrastive_batches=5"], RecipeError, "clce has one stage"),
        (["identification.data=x"], RecipeError, "train one of them per run"),
    ],
)
def test_bad_recipes_are_named(folder, changes, error, message) -> None:
    with pytest.raises(error, match=message):
        opened(recipe(folder, "clce", *changes))


def test_classes_of_one_image_leave_nothing_to_validate_on(folder: Path, tmp_path: Path) -> None:
    write_colour_classes(tmp_path / "data", per_class=1)
    with pytest.raises(DatasetError, match="leaves no image to validate on"):
        opened(recipe(folder, "clce", f"classification.data={tmp_path / 'data'}"))


def test_balanced_batches_hold_so_many_images_of_each_class() -> None:
    labels = np.array([0] * 9 + [1] * 2 + [2] * 5 + [3] * 4)
    sampler = ClassBalancedSampler(labels, batch_size=6, images_per_class=3, seed=2)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 3
    for batch in batches:
        names, counts = np.unique(labels[batch], return_counts=True)
        assert (len(names), set(counts)) == (2, {3})
    assert {int(name) for batch in batches for name in labels[batch]} == {0, 1, 2, 3}
    with pytest.raises(DatasetError, match="batches of 5 classes need as many, the data has 4"):
        ClassBalancedSampler(labels, 10, 2, 0)


def test_views_depend_on_seed_image_and_view(folder: Path) -> None:
    paths = sorted((folder / "data" / "red").glob("*.png"))
    dataset = ViewDataset(paths, np.zeros(len(paths), np.int64), 32, ViewAugmentation())
    torch.manual_seed(1)
    once, again = dataset[0], dataset[0]
    assert torch.equal(once.first, again.first)
    assert not torch.equal(once.first, once.second)
    torch.manual_seed(2)
    assert not torch.equal(dataset[0].first, once.first)


def test_a_view_without_changes_is_the_plain_one() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    still = ViewAugmentation(smallest_crop=1, flip=0, rotation=0, colour=0)
    view = changed_view(image, 32, still, np.random.default_rng(0))
    assert np.abs(view.astype(int) - plain_view(image, 32)).max() <= 1


def test_every_class_with_two_images_is_held_out_in_part() -> None:
    labels = np.array([0] * 10 + [1] * 2 + [2])
    train, held_out = hold_out(labels, 0.1, seed=0)
    assert sorted([*train, *held_out]) == list(range(13))
    assert np.bincount(labels[held_out], minlength=3).tolist() == [1, 1, 0]
