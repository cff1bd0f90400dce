from __future__ import annotations

import numpy as np
import pytest

from mca_perception.identification.crops import crop_object
from mca_perception.pipeline.heat_maps import heat_overlay, place_heat


@pytest.mark.parametrize("box", [(40, 30, 90, 60), (0, 0, 33, 80), (100, 60, 160, 100)])
@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_heat_lies_where_the_crop_was_cut(box: tuple[int, ...], margin: float) -> None:
    """A crop of a ramp, put back, is the ramp again."""
    ramp = np.add.outer(np.arange(100), np.arange(160)).astype(np.float32) / 260
    corners = np.array(box, np.float32)
    image = np.repeat((ramp * 255).astype(np.uint8)[..., None], 3, axis=2)
    crop = crop_object(image, corners, size=64, margin=margin, background=127)
    placed = place_heat(crop[..., 0].astype(np.float32) / 255, corners, margin, (100, 160))
    x1, y1, x2, y2 = box
    inside = slice(y1 + 3, y2 - 3), slice(x1 + 3, x2 - 3)
    np.testing.assert_allclose(placed[inside], ramp[inside], atol=0.02)
    far = np.ones_like(ramp, bool)
    reach = int(max(x2 - x1, y2 - y1) * (1 + margin)) + 2
    far[max(0, y1 - reach) : y2 + reach, max(0, x1 - reach) : x2 + reach] = False
    assert not placed[far].any()


def test_overlay_is_red_where_it_is_hot_and_unchanged_where_it_is_not() -> None:
    image = np.full((4, 6, 3), 100, np.uint8)
    heat = np.zeros((4, 6), np.float32)
    heat[1, 2] = 1
    shown = heat_overlay(image, heat)
    assert (shown[heat == 0] == 100).all()
    red, green, blue = shown[1, 2].tolist()
    assert red > 100
    assert max(green, blue) < 100
