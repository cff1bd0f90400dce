"""The edge head as a task of the training loop: it learns what it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mca_perception.backbone import create_backbone
from mca_perception.segmentation.data import collate
from mca_perception.segmentation.recipe import SegmentationRecipe
from mca_perception.segmentation.task import SegmentationTask
from tests.support.overfitting import overfit, write_eight_totes


@pytest.mark.slow
@pytest.mark.training
@pytest.mark.timeout(7200)
def test_overfits_eight_totes(tmp_path: Path) -> None:
    """Mask AP50 above 0.95 on eight synthesised totes after 300 steps of four images."""
    write_eight_totes(tmp_path)
    torch.manual_seed(0)
    backbone = create_backbone("beit3_nano_patch16", img_size=160, depth=4)
    recipe = SegmentationRecipe(
        data=tmp_path, input_size=(160, 208), batch_size=4, workers=0, validation_split="train"
    )
    task = SegmentationTask(recipe, backbone.embed_dim, 0)
    assert overfit(task, backbone, collate, steps=300) > 0.95
