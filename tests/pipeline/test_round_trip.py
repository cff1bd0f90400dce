"""Whatever the size of the image: boxes, masks and crops lie where things were drawn, in its own pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mca_perception.geometry import box_iou
from mca_perception.pipeline import PerceptionPipeline
from tests.support.bundles import PALETTE, draw_tote, write_colour_bundle

MAX_SIDE, MIN_SIDE = 1600, 40
MASK_STRIDE = 4
_fraction = st.floats(0.0, 1.0)


@pytest.fixture(scope="module", params=[(256, 320), (320, 256), (288, 288)], ids=str)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PerceptionPipeline:
    folder = tmp_path_factory.mktemp("bundle") / "colours"
    write_colour_bundle(folder, segmentation={"input_size": request.param})
    return PerceptionPipeline.from_bundle(folder, session="onnxruntime-cpu")


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    height=st.integers(MIN_SIDE, MAX_SIDE),
    width=st.integers(MIN_SIDE, MAX_SIDE),
    left=_fraction,
    top=_fraction,
    wide=_fraction,
    high=_fraction,
    colour=st.sampled_from(sorted(PALETTE)),
)
def test_an_object_is_found_where_it_was_drawn(
    pipeline: PerceptionPipeline,
    height: int,
    width: int,
    left: float,
    top: float,
    wide: float,
    high: float,
    colour: str,
) -> None:
    # At least 120 pixels of the network's input each way: 2 % of such an object are more than its corners. One mask
    # cell away from the edge of the image: nearer, there is nothing to interpolate with.
    input_height, input_width = pipeline.segmentation_settings.input_size
    scale = min(input_height / height, input_width / width)
    least_w, least_h = 120 / scale / width, 120 / scale / height
    edge_w, edge_h = MASK_STRIDE / scale / width, MASK_STRIDE / scale / height
    most_w, most_h = 1 - 2 * edge_w, 1 - 2 * edge_h
    if least_w > most_w or least_h > most_h:
        return  # too narrow an image for an object of that size
    w, h = least_w + wide * (most_w - least_w), least_h + high * (most_h - least_h)
    x, y = edge_w + left * (most_w - w), edge_h + top * (most_h - h)
    image, masks = draw_tote((height, width), {colour: (x, y, x + w, y + h)})
    objects = pipeline.perceive(image)
    assert len(objects) == 1
    assert objects.image_size == (height, width)
    found, drawn = objects.mask(0), masks[colour]
    assert (found & drawn).sum() / (found | drawn).sum() > 0.98
    ys, xs = np.nonzero(drawn)
    box = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.float32)
    assert box_iou(objects.boxes, box)[0, 0] > 0.98
    crop = pipeline.crop(image, box=objects.boxes[0], mask=found)
    middle = crop[crop.shape[0] // 2, crop.shape[1] // 2]
    assert np.abs(middle.astype(int) - PALETTE[colour]).max() <= 2


def test_overlap_of_boxes() -> None:
    a = np.array([[0, 0, 10, 10], [5, 5, 5, 9]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float32)
    assert box_iou(a, b) == pytest.approx(np.array([[1, 1 / 3, 0], [0, 0, 0]]))
    assert box_iou(a[:0], b).shape == (0, 3)
