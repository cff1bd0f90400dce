"""AutoAugment: draws repeat, views differ, torch's global generator is left alone, a missing library is named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mca_perception.classification.auto_augment import auto_augmented, load_policy
from mca_perception.classification.data import ViewDataset
from mca_perception.classification.recipe import ViewAugmentation
from mca_perception.errors import RecipeError
from tests.support.datasets import write_image

POLICIES: Any = ("imagenet", "cifar10", "svhn")


@pytest.fixture
def _library() -> None:
    try:
        load_policy("imagenet")
    except RecipeError as error:
        pytest.skip(str(error))


@pytest.fixture
def image() -> NDArray[np.uint8]:
    across, down = np.meshgrid(np.arange(48), np.arange(40))
    return np.stack([5 * across, 6 * down, 2 * (across + down)], axis=2).astype(np.uint8)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_draw_repeats_and_others_differ(image: NDArray[np.uint8], policy: str) -> None:
    def views() -> list[bytes]:
        return [auto_augmented(image, policy, np.random.default_rng(seed)).tobytes() for seed in range(40)]

    found = views()
    assert found == views()
    assert len(set(found)) > 10


@pytest.mark.usefixtures("_library")
def test_a_view_is_what_the_library_makes_of_the_same_seed(image: NDArray[np.uint8]) -> None:
    view = auto_augmented(image, "imagenet", np.random.default_rng(4))
    torch.manual_seed(int(np.random.default_rng(4).integers(2**63)))
    expected = load_policy("imagenet")(torch.from_numpy(image.transpose(2, 0, 1).copy()))
    assert view.dtype == np.uint8
    assert np.array_equal(view, expected.permute(1, 2, 0).numpy())


@pytest.mark.usefixtures("_library")
def test_the_global_generator_goes_on_as_if_nothing_was_drawn(image: NDArray[np.uint8]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    auto_augmented(image, "imagenet", np.random.default_rng(0))
    assert torch.initial_seed() == 3
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("policy", POLICIES)
def test_views_depend_on_seed_image_and_view(image: NDArray[np.uint8], policy: Any, tmp_path: Path) -> None:
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path in paths:
        write_image(path, image)
    # Without the other draws, only the policy's make a difference.
    settings = ViewAugmentation(smallest_crop=1, flip=0, rotation=0, colour=0, auto_augment=policy)
    data = ViewDataset(paths, np.zeros(2, np.int64), 32, settings)

    def views(seed: int) -> list[list[torch.Tensor]]:
        torch.manual_seed(seed)
        return [[*data[0][:2]], [*data[1][:2]]]

    runs = {seed: views(seed) for seed in range(12)}
    again = views(0)
    assert all(torch.equal(runs[0][i][view], again[i][view]) for i in range(2) for view in range(2))
    seeds, images, numbers = (
        [not torch.equal(runs[seed][0][0], runs[seed + 1][0][0]) for seed in range(11)],
        [not torch.equal(found[0][0], found[1][0]) for found in runs.values()],
        [not torch.equal(found[0][0], found[0][1]) for found in runs.values()],
    )
    # Many parts of a policy change nothing with some probability: most pairs differ, not all.
    assert all(sum(differ) > 6 for differ in (seeds, images, numbers))


@pytest.fixture
def _missing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    load_policy.cache_clear()
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    yield
    load_policy.cache_clear()


@pytest.mark.usefixtures("_missing")
def test_a_missing_library_is_named_before_the_run_begins() -> None:
    with pytest.raises(RecipeError, match=r"needs torchvision .*auto_augment=null"):
        ViewDataset([], np.zeros(0, np.int64), 32, ViewAugmentation(auto_augment="imagenet"))
