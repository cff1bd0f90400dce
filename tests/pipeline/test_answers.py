"""Unknown products are refused at run time, and answers carry their confidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mca_perception.errors import GalleryError
from mca_perception.identification.gallery import Gallery
from mca_perception.pipeline import PerceptionPipeline
from tests.support.bundles import PALETTE, draw_tote, reference_photo, write_colour_bundle

RECTANGLES = {"red": (0.1, 0.1, 0.4, 0.45), "blue": (0.55, 0.5, 0.9, 0.95)}


def calibration(**changes: Any) -> dict[str, Any]:
    fields = {"views": 1, "gallery": "container", "threshold": 0.9, "temperature": 0.1}
    return {**fields, "false_accept": 0.01, "confidence": 0.95, "calibrated_on": "nothing", **changes}


def make(tmp_path: Path, *calibrations: dict[str, Any]) -> PerceptionPipeline:
    bundle = write_colour_bundle(tmp_path / "model", identification={"calibration": list(calibrations)})
    gallery = Gallery.open(tmp_path / "colours.gallery")
    pipeline = PerceptionPipeline.from_bundle(bundle.path)
    gallery.add_many({name: pipeline.embed_references([reference_photo(name)]) for name in PALETTE})
    pipeline.gallery = gallery
    return pipeline


def test_what_is_not_similar_enough_is_unknown(tmp_path) -> None:
    image, _ = draw_tote((256, 320), RECTANGLES)
    pipeline = make(tmp_path, calibration())
    found = pipeline.perceive(image, manifest=["red", "green"])
    # Blue is not in the container: its object is nothing that is.
    assert sorted(found.product_ids) == [(), ("red", "green")]
    known = found.product_ids.index(("red", "green"))
    assert 0.5 < found.product_confidences[known] <= 1
    assert np.isnan(found.product_confidences[1 - known])
    assert np.isnan(found.product_scores[1 - known]).all()
    assert found.to_rows()[1 - known]["product_id"] is None
    assert found[[known]].product_confidences.tolist() == [found.product_confidences[known]]

    pipeline.reject_unknown = False
    found = pipeline.perceive(image, manifest=["red", "green"])
    assert all(len(products) == 2 for products in found.product_ids)
    assert np.isfinite(found.product_confidences).all()


@pytest.mark.parametrize(
    "calibrations", [(), (calibration(threshold=1.0, gallery="all"),)], ids=["none", "other gallery"]
)
def test_without_a_calibration_for_it_nothing_is_refused(tmp_path, calibrations) -> None:
    image, _ = draw_tote((256, 320), RECTANGLES)
    found = make(tmp_path, *calibrations).perceive(image, manifest=["red", "green"])
    assert all(len(products) == 2 for products in found.product_ids)
    assert np.isnan(found.product_confidences).all()


def test_all_products_have_a_threshold_of_their_own(tmp_path) -> None:
    image, _ = draw_tote((256, 320), RECTANGLES)
    pipeline = make(tmp_path, calibration(threshold=-1.0), calibration(threshold=1.0, gallery="all"))
    assert pipeline.perceive(image).product_ids == [(), ()]
    assert all(pipeline.perceive(image, manifest=list(PALETTE)).product_ids)


def test_pick_is_identified_from_its_views(tmp_path) -> None:
    pipeline = make(tmp_path, calibration(views=1, threshold=1.0), calibration(views=3))
    crops = {
        slot: pipeline.crop_reference(reference_photo(name)) for slot, name in enumerate(("red", "cyan"))
    }
    answer = pipeline.identify_pick(crops, manifest=["red", "green"])
    assert answer.products[0] == "red"  # in the first view; the second shows something else
    assert answer.scores[0] > 0.9
    assert answer.confidence > 0.5
    assert pipeline.identify_pick({1: crops[1]}, manifest=["red"]).products == ()  # threshold for one view
    assert pipeline.identify_pick(crops, manifest=[]).products == ()
    with pytest.raises(ValueError, match="at least one view"):
        pipeline.identify_pick({})
    pipeline.gallery = None
    with pytest.raises(GalleryError, match="no gallery"):
        pipeline.identify_pick(crops)
