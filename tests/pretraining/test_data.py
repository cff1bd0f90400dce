"""Items to batches: crops, held-out parts, labels of equal texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mca_perception.datasets.images import resize_square
from mca_perception.datasets.pairs import Item, read_pairs
from mca_perception.errors import DatasetError
from mca_perception.pretraining.data import ItemDataset, collate, random_crop, split_items
from mca_perception.pretraining.recipe import PretrainingRecipe
from tests.support.pretraining import write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), held_out=2)


def dataset(folder: Path, modalities: tuple[str, ...], crop: float | None) -> ItemDataset:
    items = read_pairs(folder).items
    return ItemDataset(items, modalities, image_size=32, patch_size=16, hidden_share=0.5, smallest_crop=crop)


def test_batch_has_images_masks_texts_and_labels(folder: Path) -> None:
    data = dataset(folder, ("vision", "text"), 0.5)
    batch = collate([data[number] for number in range(8)])
    assert batch.images is not None
    assert batch.hidden_patches is not None
    assert batch.images.shape == (8, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.hidden_patches.sum(dim=1).tolist() == [2] * 8
    assert batch.texts is not None
    assert set(batch.texts) == {text for item in data.items for text in item.texts}
    assert batch.labels.tolist() == list(range(8))


@pytest.mark.parametrize("modality", ["vision", "text"])
def test_one_modality_leaves_the_other_unread(modality: str) -> None:
    missing = Item(
        "x", (Path("/nowhere.png"),) if modality == "text" else (), ("t",) if modality == "text" else ()
    )
    data = ItemDataset(
        [missing], (modality,), image_size=32, patch_size=16, hidden_share=0.5, smallest_crop=0.5
    )
    if modality == "text":
        batch = collate([data[0]])
        assert (batch.images, batch.hidden_patches, batch.texts) == (None, None, ["t"])
    else:
        with pytest.raises(ValueError, match="high"):  # the image is asked for, and there is none
            data[0]


def test_held_out_samples_do_not_depend_on_the_seed(folder: Path) -> None:
    data = dataset(folder, ("vision", "text"), None)
    samples = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        samples.append(data[3])
    assert np.array_equal(samples[0].image, samples[1].image)  # type: ignore[arg-type]
    assert np.array_equal(samples[0].hidden_patches, samples[1].hidden_patches)  # type: ignore[arg-type]


def test_training_samples_do(folder: Path) -> None:
    data = dataset(folder, ("vision",), 0.5)
    torch.manual_seed(0)
    first = data[3].image
    torch.manual_seed(1)
    assert not np.array_equal(first, data[3].image)  # type: ignore[arg-type]


def test_equal_texts_share_a_label() -> None:
    items = [Item(str(n), (), (text,)) for n, text in enumerate(["a", "b", "a", "c"])]
    data = ItemDataset(items, ("text",), image_size=32, patch_size=16, hidden_share=0.5, smallest_crop=None)
    assert data.labels == [0, 1, 0, 3]


@pytest.mark.parametrize("shape", [(40, 60), (300, 20), (1, 1)])
def test_random_crops_keep_the_least_area(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = random_crop(image, 0.5, rng).shape[:2]
        assert height * width >= 0.5 * shape[0] * shape[1] - max(shape)


@pytest.mark.parametrize("side", [8, 64])
def test_resize_keeps_a_flat_colour(side: int) -> None:
    image = np.full((20, 33, 3), (10, 120, 250), np.uint8)
    resized = resize_square(image, side)
    assert resized.shape == (side, side, 3)
    assert (resized == image[0, 0]).all()


def recipe(folder: Path, **fields: object) -> PretrainingRecipe:
    settings = {"data": folder, "objectives": {"mim": 1.0}, "batch_size": 4, **fields}
    return PretrainingRecipe.model_validate(settings)


def test_split_by_name(folder: Path) -> None:
    train, held_out, skipped = split_items(recipe(folder, validation_split="test"), seed=0)
    assert not skipped["train"]
    assert {item.split for item in train} == {"train"}
    assert [item.split for item in held_out] == ["test"] * 2


def test_random_split_is_seeded_and_disjoint(folder: Path) -> None:
    parts = [split_items(recipe(folder, validation_fraction=0.25), seed)[:2] for seed in (0, 0, 1)]
    assert parts[0] == parts[1]
    assert parts[0] != parts[2]
    train, held_out = parts[0]
    assert len(held_out) == 2
    assert not {item.id for item in train} & {item.id for item in held_out}


def test_other_folder_for_validation(folder: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    with (tmp_path / "pairs.jsonl").open("a") as stream:
        stream.write('{"image": "absent.png", "text": "t"}')
    train, held_out, skipped = split_items(
        recipe(folder, validation_data=tmp_path, validation_items=3), seed=0
    )
    assert skipped["validation"] == {"file missing": 1}
    assert (len(train), len(held_out)) == (8, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"validation_split": "dev"}, r"no item of split 'dev' \(there are: test, train\)"),
        ({"batch_size": 9}, "leaves 7 training items for a batch of 9"),
    ],
)
def test_unusable_splits_are_refused(folder: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        split_items(recipe(folder, **fields), seed=0)
