from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from mca_perception.datasets.synth.catalogue import KINDS, Catalogue, random_orientation
from mca_perception.errors import DatasetError

CATALOGUE = Catalogue(5, 400)
FIRST_OF_KIND = {CATALOGUE.product(index).kind: index for index in reversed(range(120))}


def test_product_depends_on_seed_and_index_alone() -> None:
    assert Catalogue(5, 10).product(7) == CATALOGUE.product(7)
    assert Catalogue(6, 10).product(7) != CATALOGUE.product(7)


def test_equal_seeds_render_equal_pixels() -> None:
    views = []
    for _ in range(2):
        catalogue = Catalogue(5, 10)
        views.append(catalogue.render(catalogue.product(3), np.random.default_rng(1), 120))
    assert np.array_equal(*views)


def test_ids_are_unique_and_never_shared_between_catalogues() -> None:
    ids = [Catalogue(seed, 400).product(index).product_id for seed in (1, 2, 3) for index in range(400)]
    assert len(set(ids)) == len(ids)


def test_some_ids_are_digits_with_leading_zeros() -> None:
    ids = [CATALOGUE.product(index).product_id for index in range(100)]
    assert any(name.isdigit() and name.startswith("0") for name in ids)


def test_every_kind_occurs() -> None:
    kinds = Counter(CATALOGUE.product(index).kind for index in range(400))
    assert set(kinds) == set(KINDS)
    assert kinds["box"] == max(kinds.values())


def test_line_mates_share_brand_size_and_layout_but_not_the_print() -> None:
    products = [CATALOGUE.product(index) for index in range(400)]
    mates = [pair for pair in pairwise(products) if pair[0].design.brand == pair[1].design.brand]
    assert 0.15 < len(mates) / len(products) < 0.4
    for first, second in mates:
        assert (first.kind, first.size, first.design.layout) == (
            second.kind,
            second.size,
            second.design.layout,
        )
        assert first.design.variant_seed != second.design.variant_seed


@pytest.mark.parametrize("kind", KINDS)
def test_render_shows_a_solid_object_in_varying_poses(kind: str) -> None:
    product = CATALOGUE.product(FIRST_OF_KIND[kind])
    rng = np.random.default_rng(0)
    sprites = [CATALOGUE.render(product, rng, 128) for _ in range(4)]
    for sprite in sprites:
        assert sprite.dtype == np.uint8
        assert sprite.shape[2] == 4
        assert 50 <= max(sprite.shape[:2]) <= 200
        solid = sprite[:, :, 3] > 127
        assert solid.mean() > 0.25
        assert sprite[solid][:, :3].std() > 3
    assert len({sprite.shape for sprite in sprites}) > 1


def test_random_orientation_is_a_rotation() -> None:
    rng = np.random.default_rng(0)
    for kind in (*KINDS, "photo"):
        matrix = random_orientation(kind, rng)
        assert np.allclose(matrix @ matrix.T, np.eye(3))
        assert np.isclose(np.linalg.det(matrix), 1)


def test_manifest_entry_has_the_fields_of_a_container() -> None:
    entry = CATALOGUE.product(0).manifest_entry()
    assert set(entry) == {"description", "weight", "dimensions"}


@pytest.mark.parametrize("size", [0, -1, 1_000_001])
def test_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(DatasetError, match="catalogue size"):
        Catalogue(0, size)


@pytest.mark.parametrize("index", [-1, 400])
def test_unknown_product_is_refused(index: int) -> None:
    with pytest.raises(DatasetError, match="the catalogue has 400"):
        CATALOGUE.product(index)


@pytest.mark.parametrize("size_px", [0, 7, 5000])
def test_size_of_a_rendering_is_bounded(size_px: int) -> None:
    with pytest.raises(DatasetError, match="size_px"):
        CATALOGUE.render(CATALOGUE.product(0), np.random.default_rng(0), size_px)
