from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from mca_perception.datasets.armbench_defect_videos import clip_frames, read_defect_clips
from mca_perception.datasets.armbench_defects import OPENED, DefectIndex, read_defect_images
from mca_perception.datasets.images import read_rgb
from mca_perception.datasets.synth import defect_disguises as disguises
from mca_perception.datasets.synth import defect_scenes as scenes
from mca_perception.datasets.synth.catalogue import Catalogue, random_orientation
from mca_perception.datasets.synth.defect_clips import clip_label
from mca_perception.datasets.synth.defect_items import Item, PanelModel, draw_item, draw_light
from mca_perception.datasets.synth.defect_openings import opened
from mca_perception.datasets.synth.defect_set import (
    DefectSettings,
    outline,
    pick_id,
    plan_sessions,
    write_defects,
)
from mca_perception.datasets.synth.pick_set import product_pools
from mca_perception.errors import DatasetError

COUNT = 24


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue(3, 120)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "defects"
    write_defects(DefectSettings(out, COUNT, 11, 120), workers=1)
    return out


@pytest.fixture(scope="module")
def index(written: Path) -> DefectIndex:
    return read_defect_images(written)


def test_layout_is_read_without_anything_left_out(index: DefectIndex) -> None:
    assert not index.skipped
    assert set(index.incomplete) <= {"image without a polygon", "pick whose images have different labels"}
    picks = (*index.train, *index.test)
    assert len(picks) == COUNT
    assert all(len(pick.id) == 21 and pick.id.startswith("0") for pick in picks)
    assert all(3 <= len(pick.views) <= 6 for pick in picks)
    labels = Counter(view.label for pick in picks for view in pick.views)
    assert set(labels) == {0, 1, 2}
    assert labels[0] > labels[1] + labels[2]


def test_outlines_lie_on_the_images(index: DefectIndex) -> None:
    for pick in index.test[:3]:
        for view in pick.views:
            height, width = read_rgb(view.image).shape[:2]
            mask = view.mask(height, width)
            assert view.polygon is None or 0.01 < mask.mean() < 0.8


def test_split_shares_no_session(index: DefectIndex) -> None:
    assert index.test
    assert not {p.session for p in index.train} & {p.session for p in index.test}
    assert len(index.unseen_sessions("official")) == len(index.test)


def test_split_shares_no_product(catalogue: Catalogue) -> None:
    train, test = product_pools(catalogue.seed, len(catalogue), 0.3)
    assert not set(train) & set(test)
    rng = np.random.default_rng(0)
    for _ in range(20):
        held = scenes.hold(catalogue, test[:16], "multi_pick", rng)
        assert 2 <= len(held.items) <= 3


def test_equal_settings_give_equal_bytes(written: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    write_defects(DefectSettings(again, COUNT, 11, 120), workers=2)
    files = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((written / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_a_run_that_was_cut_off_goes_on_with_the_picks_it_lacks(written: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(written, cut)
    first, *others = sorted(cut.glob("data/*"))
    lacking = sorted(first.glob("*.json"))[-1]
    for path in (lacking, cut / "train.csv"):
        path.unlink()
    before = {path: path.stat().st_mtime_ns for folder in others for path in folder.iterdir()}
    write_defects(DefectSettings(cut, COUNT, 11, 120), workers=1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert all((cut / p.relative_to(written)).read_bytes() == p.read_bytes() for p in written.rglob("*.*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "--count"),
        ({"seed": -1}, "--seed"),
        ({"products": 0}, "--products"),
        ({"test_fraction": 1.5}, "--test-fraction"),
        ({"products": 40}, "raise --products"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    settings = {"out": tmp_path / "x", "count": 10, "seed": 1, **changes}
    with pytest.raises(DatasetError, match=message):
        write_defects(DefectSettings(**settings), workers=1)


def test_another_set_in_the_folder_is_refused(written: Path) -> None:
    with pytest.raises(DatasetError, match="other settings"):
        write_defects(DefectSettings(written, COUNT, 12, 120), workers=1)


def test_sessions_add_up() -> None:
    plans = list(plan_sessions(DefectSettings(Path("x"), 500, 3)))
    assert sum(plan.picks for plan in plans) == 500
    assert 0.25 < sum(plan.picks for plan in plans if plan.test) / 500 < 0.35
    ids = {pick_id(3, plan.index, number) for plan in plans for number in range(plan.picks)}
    assert len(ids) == 500


@pytest.mark.parametrize("kind", ["box", "book", "bottle", "can", "pouch", "mailer"])
def test_opened_packages_give_themselves_away_in_some_poses_only(catalogue: Catalogue, kind: str) -> None:
    product = next(p for p in map(catalogue.product, range(120)) if p.kind == kind)
    rng = np.random.default_rng(4)
    shares = []
    for _ in range(6):
        item, _, sublabel = opened(catalogue.model(product), kind, rng)
        assert sublabel
        for _ in range(4):
            drawn = draw_item(item, random_orientation(kind, rng, 0.35), 8.0, draw_light(rng), rng)
            assert drawn.rgba.shape[:2] == drawn.giveaway.shape
            shares.append(drawn.giveaway.mean())
    assert max(shares) > 0.04
    assert min(shares) < 0.02


def test_intact_products_and_their_disguises_show_no_defect(catalogue: Catalogue) -> None:
    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(60):
        held = scenes.hold(catalogue, np.arange(120), "nominal", rng)
        seen.add(held.disguise)
        (item,) = held.items
        assert not isinstance(item.model, PanelModel)
        assert not draw_item(item, np.eye(3), 6.0, draw_light(rng), rng).giveaway.any()
    assert seen == {"", *disguises.DISGUISES}


def test_hidden_second_object_is_not_labelled(catalogue: Catalogue) -> None:
    """An object wholly behind another one cannot be seen, so the image is nominal."""
    large, small = sorted(
        (p for p in map(catalogue.product, range(120)) if p.kind == "box"), key=lambda p: -min(p.size)
    )[:: 1 << 4][:2]
    items = (Item(catalogue.model(large), "box"), Item(catalogue.model(small), "box"))
    station = scenes.Station((1, 2, 3))
    shown = {}
    for spread in (0.0, 1.0):
        held = scenes.Held("multi_pick", "multi_pick", items, spread, "")
        pictures = [
            scenes.photograph(held, station, "OnArmLowRGB", np.random.default_rng(seed)) for seed in range(12)
        ]
        shown[spread] = sum(picture.shown for picture in pictures)
    assert shown[1.0] >= 10
    assert shown[0.0] < shown[1.0]


def test_parts_agree_with_the_label(index: DefectIndex) -> None:
    kinds = {0: 0, 1: 0, 2: 0}
    for view in (view for pick in index.train for view in pick.views):
        assert view.parts is not None
        parts = cv2.imread(str(view.parts), cv2.IMREAD_GRAYSCALE)
        assert parts.shape == read_rgb(view.image).shape[:2]
        found = set(np.unique(parts)) - {0}
        assert (OPENED in found) is (view.label == 2)
        assert (len(found - {OPENED}) > 1) is (view.label == 1) or view.label == 2
        kinds[view.label] += 1
    assert all(kinds.values())


def test_loose_parts_are_drawn(catalogue: Catalogue) -> None:
    rng = np.random.default_rng(6)
    for _ in range(12):
        drawn = draw_item(disguises.loose_part((9, 12, 5), rng), np.eye(3), 6.0, draw_light(rng), rng)
        assert drawn.giveaway.mean() > 0.3


def test_outline_of_parts_is_their_hull() -> None:
    mask = np.zeros((60, 60), bool)
    assert outline(mask) == []
    mask[5:15, 5:15] = mask[40:55, 40:55] = True
    points = np.array(outline(mask))
    assert points.min() <= 6
    assert points.max() >= 53


def test_clips_are_read_and_agree_with_their_annotation(tmp_path: Path) -> None:
    write_defects(DefectSettings(tmp_path / "set", 8, 2, 120, videos=True), workers=1)
    index = read_defect_clips(tmp_path / "set" / "video")
    assert not index.skipped
    clips = (*index.train, *index.test)
    pictures = {
        pick.id: pick
        for part in (read_defect_images(tmp_path / "set"),)
        for pick in (*part.train, *part.test)
    }
    assert {clip.id for clip in clips} <= set(pictures)
    for clip in clips[:3]:
        entry = json.loads((tmp_path / "set" / "video" / "annotations" / f"{clip.id}.json").read_text())
        frames = list(clip_frames(clip.video))
        assert len(frames) == entry["frames"]
        assert any(clip.bits) == ("first_visible" in entry)
        assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 1


@pytest.mark.parametrize(
    ("label", "items", "expected"),
    [
        ("nominal", 1, "nominal"),
        ("package_defect", 1, "open"),
        ("package_defect", 3, "deconstruction"),
        ("multi_pick", 2, None),
    ],
)
def test_label_of_a_clip(label: str, items: int, expected: str | None) -> None:
    part = disguises.loose_part((8, 9, 3), np.random.default_rng(0))
    assert clip_label(scenes.Held(label, label, (part,) * items, 0.5, "")) == expected
