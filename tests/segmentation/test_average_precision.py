from __future__ import annotations

import numpy as np
import pytest

from mca_perception.segmentation import average_precision
from mca_perception.segmentation.average_precision import Evaluations, bootstrap_ap50
from tests.support.detections import OBJECT, TOTE, as_results, by_hand, random_set


def figures(evaluations: Evaluations, images=None, categories=None) -> list[float | None]:
    curves = evaluations.curves(images)
    return [curves.average(iou, categories) for iou in (None, 0.5, 0.75)]


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize(
    ("categories", "images_at_once"), [(None, 200), ([OBJECT], 5), ([TOTE], 200), (None, 5)]
)
def test_equals_pycocotools_by_hand(monkeypatch, kind, categories, images_at_once) -> None:
    monkeypatch.setattr(average_precision, "_IMAGES_AT_ONCE", images_at_once)
    truth, results = random_set(images_at_once)
    found = figures(Evaluations.of(truth, results, kind), categories=categories)
    assert found == pytest.approx(by_hand(truth, results, kind, categories), abs=1e-12)


def test_some_images_equal_pycocotools_on_these_images() -> None:
    truth, results = random_set(4, images=20)
    evaluations = Evaluations.of(truth, results, "segm")
    places = [3, 4, 11, 17, 19]
    chosen = [evaluations.images[place] for place in places]
    assert figures(evaluations, places) == pytest.approx(by_hand(truth, results, "segm", images=chosen))


def test_repeated_images_equal_pycocotools_on_a_set_with_copies() -> None:
    truth, results = random_set(5, images=8)
    places = [0, 0, 2, 5, 5, 5, 7]

    def copies(entries, key):
        return [
            {**entry, key: new}
            for new, place in enumerate(places, 1)
            for entry in entries
            if entry[key] == place + 1
        ]

    annotations = [{**a, "id": n} for n, a in enumerate(copies(truth["annotations"], "image_id"), 1)]
    resampled = {**truth, "images": copies(truth["images"], "id"), "annotations": annotations}
    expected = by_hand(resampled, copies(results, "image_id"), "segm")
    assert figures(Evaluations.of(truth, results, "segm"), places) == pytest.approx(expected)


def test_one_threshold_alone_gives_the_same_precision() -> None:
    truth, results = random_set(6)
    evaluations = Evaluations.of(truth, results, "segm", ranges={"all": (0, 1e10), "small": (0, 1e5)})
    assert evaluations.at(0.75).curves().average() == evaluations.curves().average(0.75)
    assert evaluations.curves(size="small").average(0.5) != evaluations.curves().average(0.5)


def test_bootstrap_scatters_around_the_figure_and_repeats_with_its_seed() -> None:
    truth, results = random_set(7, images=30)
    evaluations = Evaluations.of(truth, results, "segm")
    drawn = bootstrap_ap50(evaluations, samples=40, seed=1)
    assert drawn.shape == (40, 2)
    assert np.array_equal(drawn, bootstrap_ap50(evaluations, samples=40, seed=1))
    assert not np.array_equal(drawn, bootstrap_ap50(evaluations, samples=40, seed=2))
    expected = evaluations.curves().average(0.5, [OBJECT])
    column = drawn[:, evaluations.categories.index(OBJECT)]
    assert column.min() < expected < column.max()
    assert 0.005 < column.std() < 0.2


def test_bootstrap_leaves_out_what_a_resample_lacks() -> None:
    truth, _ = random_set(0, images=3)
    first = next(a for a in truth["annotations"] if a["category_id"] == TOTE)
    truth["annotations"] = [first]
    evaluations = Evaluations.of(truth, as_results([first]), "segm")
    drawn = bootstrap_ap50(evaluations, samples=30, seed=0)
    assert np.isnan(drawn[:, evaluations.categories.index(OBJECT)]).all()
    tote = drawn[:, evaluations.categories.index(TOTE)]
    assert 0 < np.isnan(tote).sum() < 30
    assert tote[~np.isnan(tote)] == pytest.approx(1)


def test_progress_covers_all_images(monkeypatch) -> None:
    monkeypatch.setattr(average_precision, "_IMAGES_AT_ONCE", 5)
    truth, results = random_set(0, images=12)
    seen = []
    Evaluations.of(
        truth, results, "segm", progress=lambda items, text: seen.append((len(items), text)) or items
    )
    assert seen == [(3, "comparing masks")]
