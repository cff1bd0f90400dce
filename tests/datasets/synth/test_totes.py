import numpy as np
import pytest

from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.contents import SUBSETS
from mca_perception.datasets.synth.totes import Scene, render_scene
from mca_perception.errors import DatasetError

CATALOGUE = Catalogue(2, 60)


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {subset: [render_scene(CATALOGUE, 4, index, subset) for index in range(6)] for subset in SUBSETS}


def test_scene_depends_on_its_arguments_alone() -> None:
    first, again = render_scene(CATALOGUE, 4, 1), render_scene(Catalogue(2, 60), 4, 1)
    other = render_scene(CATALOGUE, 4, 2)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.instance_ids, again.instance_ids)
    assert first.instances == again.instances
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("subset", SUBSETS)
def test_instances_agree_with_the_id_image(scenes: dict[str, list[Scene]], subset: str) -> None:
    for scene in scenes[subset]:
        assert scene.image.shape == (512, 640, 3)
        assert scene.image.dtype == np.uint8
        assert scene.instance_ids.dtype == np.uint16
        assert sorted(set(np.unique(scene.instance_ids)) - {0}) == list(range(1, len(scene.instances) + 1))
        for instance in scene.instances:
            rows, columns = np.nonzero(scene.instance_ids == instance.instance_id)
            x, y, width, height = instance.bbox
            assert (columns.min(), rows.min()) == (x, y)
            assert (columns.max() + 1, rows.max() + 1) == (x + width, y + height)
            assert instance.area == len(rows) >= 400
            assert 0.15 <= instance.visible_fraction <= 1


def test_subsets_differ_as_described(scenes: dict[str, list[Scene]]) -> None:
    mixed, far, same = (scenes[subset] for subset in SUBSETS)
    assert all(2 <= len(scene.contents) <= 40 for scene in mixed)
    assert all(2 <= len(scene.contents) <= 24 for scene in far)
    assert all(2 <= len(scene.contents) <= 16 for scene in same)
    assert all(len({product.product_id for product in scene.contents}) == 1 for scene in same)
    tote_share = [np.mean([scene.tote_mask.mean() for scene in group]) for group in (mixed, far)]
    assert tote_share[0] > 0.75
    assert tote_share[1] < 0.6


def test_objects_look_smaller_from_further_away() -> None:
    areas = [
        [i.area for index in range(5) for i in render_scene(CATALOGUE, 4, index, subset, (7, 9)).instances]
        for subset in SUBSETS[:2]
    ]
    assert np.median(areas[1]) < 0.6 * np.median(areas[0])


def test_tote_polygon_lies_in_the_image(scenes: dict[str, list[Scene]]) -> None:
    for scene in scenes["zoomed-out-tote-transfer-set"]:
        assert scene.tote_polygon.min() >= 0
        assert (scene.tote_polygon.max(0) <= (640, 512)).all()
        assert scene.tote_mask.any()


def test_unknown_subset_is_refused() -> None:
    with pytest.raises(DatasetError, match="must be one of mix-object-tote"):
        render_scene(CATALOGUE, 0, 0, "mixed")


def test_crowds_keep_more_than_26_objects_visible() -> None:
    scenes = [render_scene(CATALOGUE, 4, index, objects=(33, 40)) for index in range(5)]
    assert all(33 <= len(scene.contents) <= 40 for scene in scenes)
    assert np.median([len(scene.instances) for scene in scenes]) > 26
    visible = [instance.visible_fraction for scene in scenes for instance in scene.instances]
    assert 0.15 < 1 - np.mean(visible) < 0.45
