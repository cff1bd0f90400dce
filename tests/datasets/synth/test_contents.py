import numpy as np
import pytest

from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.contents import (
    SUBSETS,
    choose_products,
    crowding,
    draw_count,
    parse_objects,
)
from mca_perception.errors import DatasetError


def counts(subset: str, objects: tuple[int, int] | None = None) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([draw_count(rng, subset, objects) for _ in range(4000)])


@pytest.mark.parametrize(
    ("subset", "most", "mean"), [(SUBSETS[0], 40, 10), (SUBSETS[1], 24, 8), (SUBSETS[2], 16, 5.5)]
)
def test_counts_are_long_tailed_in_the_range_of_the_subset(subset: str, most: int, mean: float) -> None:
    drawn = counts(subset)
    assert (drawn.min(), drawn.max()) == (2, most)
    assert abs(drawn.mean() - mean) < 0.6
    assert drawn.mean() > np.median(drawn)


def test_mixed_subset_has_few_and_many() -> None:
    drawn = counts(SUBSETS[0])
    assert 0.1 < (drawn < 5).mean() < 0.2
    assert 0.02 < (drawn > 28).mean() < 0.06


@pytest.mark.parametrize(
    ("text", "expected"), [("26-40", (26, 40)), ("12", (12, 12)), ("1-60", (1, 60)), (" 3 - 4 ", (3, 4))]
)
def test_objects_are_drawn_evenly_over_the_wanted_range(text: str, expected: tuple[int, int]) -> None:
    assert parse_objects(text) == expected
    drawn = counts(SUBSETS[0], expected)
    assert (drawn.min(), drawn.max()) == expected
    assert abs(drawn.mean() - np.mean(expected)) < 1


@pytest.mark.parametrize(
    "text", ["", "0-4", "5-4", "1-61", "-3", "2-", "2-x", "1e1", "2-3-4", "99999999999999999999"]
)
def test_other_ranges_are_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="--objects"):
        parse_objects(text)


def test_crowds_hold_the_smaller_products() -> None:
    catalogue = Catalogue(3, 80)
    sizes = [
        np.mean(
            [np.prod(p.size) for _ in range(40) for p in choose_products(catalogue, rng, SUBSETS[0], objects)]
        )
        for rng, objects in ((np.random.default_rng(1), (8, 8)), (np.random.default_rng(1), (40, 40)))
    ]
    assert sizes[1] < 0.7 * sizes[0]
    assert [crowding(count) for count in (1, 14, 25, 36, 60)] == [0, 0, 0.5, 1, 1]


def test_same_object_scene_holds_copies() -> None:
    chosen = choose_products(Catalogue(3, 80), np.random.default_rng(1), SUBSETS[2], (5, 5))
    assert len(chosen) == 5
    assert len({product.index for product in chosen}) == 1
