"""Clues to defects, patch by patch: what is drawn, what a patch is asked, and that both turn together."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mca_perception.backbone import create_backbone
from mca_perception.datasets.armbench_defects import OPENED, PARTS, DefectPick, read_defect_images
from mca_perception.defects.clues import clues_of, read_clues
from mca_perception.defects.data import DefectDataset, PickSample
from mca_perception.defects.losses import clue_loss
from mca_perception.defects.model import DefectConfig, DefectHead, Details
from mca_perception.defects.recipe import DefectsRecipe
from mca_perception.defects.task import DefectTask
from mca_perception.errors import RecipeError
from tests.support.defects import write_defect_set


def parts_of(label: int) -> np.ndarray:
    """Parts of an image that :func:`tests.support.defects.write_view` drew."""
    parts = np.zeros((48, 48), np.uint8)
    parts[8:40, 8:40] = 1
    if label == 1:
        parts[8:40, 24:40] = 2
    elif label == 2:
        parts[18:30, 10:38] = OPENED
    return parts


@pytest.fixture
def picks(tmp_path: Path) -> list[DefectPick]:
    root = write_defect_set(tmp_path)
    for pick in read_defect_images(root).train:
        for view in pick.views:
            cv2.imwrite(str(view.image.with_name(view.image.stem + PARTS)), parts_of(view.label))
    return list(read_defect_images(root).train)


@pytest.mark.parametrize(
    ("label", "seam", "opening"), [(0, False, False), (1, True, False), (2, False, True)]
)
def test_clues_of_each_label(label: int, seam: bool, opening: bool) -> None:
    clues = clues_of(parts_of(label)) > 0
    assert tuple(clues.any(axis=(0, 1))) == (seam, opening, False)
    columns = np.flatnonzero(clues[..., 0].any(axis=0))
    assert columns.tolist() == ([22, 23, 24, 25] if seam else [])
    assert (clues[..., 1] == (parts_of(label) == OPENED)).all()


def test_a_gap_between_items_is_no_seam() -> None:
    parts = np.zeros((20, 40), np.uint8)
    parts[:, :15], parts[:, 25:] = 1, 2
    assert not clues_of(parts).any()


def test_parts_of_another_size_or_unreadable_are_left_out(picks: list[DefectPick]) -> None:
    view = picks[0].views[0]
    assert read_clues(view, 48, 48) is not None
    assert read_clues(view, 48, 47) is None
    assert view.parts is not None
    view.parts.write_bytes(b"no picture")
    assert read_clues(view, 48, 48) is None


def test_the_loss_is_that_of_the_patches() -> None:
    clues = torch.zeros(1, 2, 8, 8, dtype=torch.uint8)
    clues[0, 0, 1, 6] = 255  # in the second of four patches
    logits = torch.tensor([[[0.5, -1.0], [2.0, -1.0], [0.0, 0.0], [-3.0, 1.0]]])
    negative = [0.5, -1.0, -1.0, 0.0, 0.0, -3.0, 1.0]
    expected = sum(math.log1p(math.exp(x)) for x in negative) + 3 * math.log1p(math.exp(-2.0))
    assert clue_loss(logits, clues).item() == pytest.approx(expected / 8)


def test_clues_turn_with_the_picture(picks: list[DefectPick]) -> None:
    opened = [pick for pick in picks if 2 in pick.defects]
    dataset = DefectDataset(opened, DefectConfig(crop_size=64), views=3)
    torch.manual_seed(0)
    for sample in (dataset[n] for n in range(len(opened))):
        assert sample.explained.equal(sample.present)
        for view in range(3):
            if sample.labels[view] == 2 and sample.present[view]:
                dark = sample.views[view].amax(dim=0) < 45
                marked = sample.clues[view, 1] > 127
                assert (dark & marked).sum() / (dark | marked).sum() > 0.8
                assert not sample.clues[view, 0].any()


@pytest.mark.parametrize(("detail_dim", "cells"), [(0, 9), (8, 36)])
def test_cells_of_the_head(detail_dim: int, cells: int) -> None:
    torch.manual_seed(0)
    head = DefectHead(32, DefectConfig(crop_size=48, detail_dim=detail_dim)).eval()
    features, images = torch.randn(2, 10, 32), torch.randn(2, 3, 48, 48)
    logits, evidence, clues = head.explain(features, images)
    assert (logits.shape, evidence.shape, clues.shape) == ((2, 3), (2, 256), (2, cells, 2))
    other = head(features, torch.randn(2, 3, 48, 48))[0]
    assert torch.equal(logits, other) is (detail_dim == 0)


def test_cells_stand_in_the_order_of_the_picture() -> None:
    """The mark of a bright pixel is strongest in its own cell."""
    torch.manual_seed(0)
    details = Details(32, 8).eval()
    plain, marked = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    marked[0, :, 20, 43] = 5.0
    with torch.inference_mode():
        change = (
            (details(torch.zeros(1, 16, 32), marked) - details(torch.zeros(1, 16, 32), plain)).abs().sum(-1)
        )
    row, column = divmod(int(change.argmax()), 8)
    assert abs(row - 20 // 8) <= 1
    assert abs(column - 43 // 8) <= 1


def test_details_need_patches_of_16_pixels() -> None:
    with pytest.raises(RecipeError, match="patches of 16 pixels; this one makes 25 of a crop of 64 x 64"):
        Details(32, 8)(torch.zeros(1, 25, 32), torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("weight", [0.0, 2.0])
@pytest.mark.parametrize("told", [True, False])
def test_patches_are_asked_where_data_and_recipe_say_so(
    picks: list[DefectPick], weight: float, told: bool
) -> None:
    if not told:
        for path in picks[0].views[0].image.parents[1].rglob(f"*{PARTS}"):
            path.unlink()
    root = picks[0].views[0].image.parents[2]
    recipe = DefectsRecipe(
        data=root,
        crop_size=32,
        batch_size=4,
        calibration_fraction=0.4,
        validation_fraction=0.3,
        workers=0,
        clues=weight,
    )
    backbone = create_backbone("beit3_nano_patch16", img_size=32, modalities=("vision",), depth=1)
    task = DefectTask(recipe, backbone.embed_dim, 0)
    batch = next(iter(task.batches(0)))
    assert isinstance(batch, PickSample)
    losses = task.losses(backbone, batch, torch.device("cpu"))
    assert set(losses) == {"image", "pick"} | ({"clues"} if told and weight else set())
    torch.stack(list(losses.values())).sum().backward()
    assert task.head.evidence.to_clues.weight.grad is not None
