from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mca_perception.geometry import Letterbox
from mca_perception.segmentation.detections import overlapping_detections, published_detections
from mca_perception.segmentation.postprocess import Candidates
from tests.support.detections import box


@pytest.mark.parametrize("image_size", [(75, 101), (240, 320)])
def test_detections_carry_their_masks_and_boxes(image_size) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :20]
    logits = np.stack(
        [r - np.hypot(rows - y, columns - x) for y, x, r in rng.uniform([0, 0, 1], [16, 20, 6], (6, 3))]
    )
    candidates = Candidates(
        np.linspace(0.9, 0.4, 6).astype(np.float32),
        np.array([0, 1, 0, 0, 0, 0]),
        logits.astype(np.float32),
        Letterbox.fit(image_size, (64, 80)),
    )
    names, ids = ("Object", "Tote"), {"Object": 3, "Tote": 1}
    whole = overlapping_detections(candidates, 7, names, ids)
    shared = published_detections(candidates, 0.55, 7, names, ids)
    assert [d["category_id"] for d in whole] == [3, 1, 3, 3, 3, 3]
    assert all(d["score"] >= 0.55 for d in shared)
    total = np.zeros(image_size, int)
    for detection in shared:
        total += coco_mask.decode(detection["segmentation"])
    assert total.max() == 1
    for detection in whole:
        mask = coco_mask.decode(detection["segmentation"])
        assert mask.shape == image_size
        assert detection["bbox"] == box(mask)
    objects = [d for d in whole if d["score"] >= 0.55 and d["category_id"] == ids["Object"]]
    assert [d["category_id"] for d in shared] == [3] * len(objects)  # a tote is not published as an object
    union = np.maximum.reduce([coco_mask.decode(d["segmentation"]) for d in objects])
    assert (total <= union).all()
