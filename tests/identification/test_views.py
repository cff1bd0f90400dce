from __future__ import annotations

import pytest

from mca_perception.datasets.armbench import VIEWS
from mca_perception.identification.views import choose_views


@pytest.mark.parametrize(
    ("available", "views", "expected"),
    [
        (VIEWS, 1, {0: "PickRGB"}),
        (VIEWS, 3, {0: "PickRGB", 1: "ToteWallRGB", 2: "OnArmLowRGB"}),
        (VIEWS, 4, dict(enumerate(VIEWS))),
        (("PickRGB", "FarTrayRGB"), 3, {0: "PickRGB", 1: "FarTrayRGB"}),
        (VIEWS[1:], 3, {1: "ToteWallRGB", 2: "OnArmLowRGB"}),
        (VIEWS[1:], 1, {}),
        ((), 3, {}),
    ],
)
def test_slots(available, views, expected) -> None:
    assert choose_views(available, views) == expected
