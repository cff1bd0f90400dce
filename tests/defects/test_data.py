"""What training changes in the views of a pick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mca_perception.datasets.armbench_defects import read_defect_images
from mca_perception.defects.data import DefectDataset, recoloured
from mca_perception.defects.model import DefectConfig
from tests.support.defects import write_defect_set


def test_recoloured_images_keep_brightness_and_grey() -> None:
    crop = np.full((8, 8, 3), 127, np.uint8)
    crop[2:6, 2:6] = (200, 40, 40)
    found = [recoloured(crop, np.random.default_rng(seed)) for seed in range(20)]
    for image in found:
        assert (image[0] == 127).all()
        assert abs(int(image[3, 3].max()) - 200) <= 1
    colours = {tuple(image[3, 3].tolist()) for image in found}
    assert len(colours) > 15


@pytest.mark.parametrize(("recolour", "bluish"), [(0.0, True), (1.0, False)])
def test_the_share_of_recoloured_views_is_kept(tmp_path: Path, recolour: float, bluish: bool) -> None:
    picks = [pick for pick in read_defect_images(write_defect_set(tmp_path)).train if 1 in pick.defects]
    dataset = DefectDataset(picks, DefectConfig(crop_size=32), views=3, recolour=recolour)
    torch.manual_seed(0)
    samples = [dataset[n] for n in range(len(picks))]
    shown = torch.cat([sample.views[sample.present & (sample.labels == 1)] for sample in samples]).float()
    excess = (shown[:, 2] - shown[:, :2].amax(dim=1)).amax(dim=(1, 2))
    assert len(excess) >= 8
    assert bool((excess > 60).all()) is bluish
