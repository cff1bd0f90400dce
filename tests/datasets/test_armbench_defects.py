from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mca_perception.datasets.armbench_defects import held_out, read_defect_images
from mca_perception.datasets.defect_ids import in_held_out_session, session_of
from mca_perception.errors import DatasetError
from tests.support.defects import SQUARE, pick_id, write_defect_set, write_view

ZEROS = pick_id(1, session=5)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One plain pick in each list."""
    write_view(tmp_path / "data" / ZEROS, "0")
    write_view(tmp_path / "data" / pick_id(2, session=6), "0", "multi_pick")
    (tmp_path / "train.csv").write_text(f"{ZEROS}\n")
    (tmp_path / "test.csv").write_text(f"{pick_id(2, session=6)}\n")
    return tmp_path


def test_reads_ids_as_text_with_their_leading_zeros(root: Path) -> None:
    index = read_defect_images(root)
    (pick,) = index.train
    assert pick.id == ZEROS
    assert pick.id.startswith("0")
    (view,) = pick.views
    assert (view.name, view.label, view.sublabel) == ("0", 0, "nominal")
    np.testing.assert_array_equal(view.polygon, SQUARE)
    assert view.mask(48, 48).sum() == 32 * 32
    assert index.test[0].defects == {1}
    assert not index.skipped
    assert not index.incomplete


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        (f"﻿{ZEROS}\r\n", {}),
        (f'"{ZEROS}"\n\n  \n', {}),
        (f" {ZEROS} ", {}),
        (f"{ZEROS}\n{ZEROS}\n", {"id listed more than once": 1}),
        (f"{int(ZEROS)}\n", {"id without its leading zeros": 1}),
    ],
)
def test_lists_as_programs_save_them(root: Path, text: str, counted: dict[str, int]) -> None:
    (root / "train.csv").write_bytes(text.encode("utf-8"))
    index = read_defect_images(root)
    assert [pick.id for pick in index.train] == [ZEROS]
    assert dict(index.incomplete) == counted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"2.1005e+19\n", "rounded number"),
        (b"../other\n", "not an id"),
        (b"\xff\xfe\x00\n", "not a text file"),
        (None, "is missing"),
    ],
)
def test_refuses_lists_that_are_none(root: Path, content: bytes | None, message: str) -> None:
    (root / "train.csv").unlink()
    if content is not None:
        (root / "train.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_defect_images(root)


@pytest.mark.parametrize(
    ("changes", "where", "reason"),
    [
        ({"label": "dented"}, "skipped", "image with a label outside the set"),
        ({"label": None}, "skipped", "image with a label outside the set"),
        ({"label": ["nominal"]}, "skipped", "image with a label outside the set"),
        ({"polygon": []}, "incomplete", "image without a polygon"),
        ({"polygon": None}, "incomplete", "image without a polygon"),
        ({"polygon": [[1, 2], [3, 4]]}, "incomplete", "image with a malformed polygon"),
        ({"polygon": [[1, 2], [3, 4], [5]]}, "incomplete", "image with a malformed polygon"),
        ({"polygon": [[1, 2], [3, 4], [5, float("nan")]]}, "incomplete", "image with a malformed polygon"),
        ({"polygon": "none"}, "incomplete", "image with a malformed polygon"),
        ({"id": "x_1"}, "incomplete", "annotation with the id of another image"),
    ],
)
def test_odd_annotations_are_counted(root: Path, changes: dict, where: str, reason: str) -> None:
    write_view(root / "data" / ZEROS, "1", **changes)
    index = read_defect_images(root)
    assert getattr(index, where) == {reason: 1}
    assert len(index.train[0].views) == (1 if where == "skipped" else 2)


def test_id_with_suffix_and_without_sublabel(root: Path) -> None:
    write_view(root / "data" / ZEROS, "1", id=f"{ZEROS}_1.jpg", sublabel="")
    write_view(root / "data" / ZEROS, "2", sublabel=None)
    index = read_defect_images(root)
    assert [view.sublabel for view in index.train[0].views] == ["nominal", "", ""]
    assert not index.incomplete


def test_missing_and_broken_files_are_counted(root: Path) -> None:
    folder = root / "data" / ZEROS
    write_view(folder, "1").with_suffix(".jpg").unlink()
    write_view(folder, "2").unlink()
    write_view(folder, "3").write_text("{")
    write_view(folder, "4").write_text("[]")
    (root / "data" / "empty").mkdir()
    (root / "train.csv").write_text(f"{ZEROS}\nempty\nnowhere\n")
    index = read_defect_images(root)
    assert len(index.train) == 1
    assert index.skipped == {
        "annotation without an image": 1,
        "image without an annotation": 1,
        "annotation not readable": 1,
        "image with a label outside the set": 1,
        "pick without a usable image": 1,
        "pick without a folder": 1,
    }


def test_views_of_one_pick_may_have_different_labels(root: Path) -> None:
    write_view(root / "data" / ZEROS, "1", "package_defect")
    write_view(root / "data" / ZEROS, "2", "multi_pick")
    index = read_defect_images(root)
    assert index.train[0].defects == {1, 2}
    assert index.incomplete == {"pick whose images have different labels": 1}


def test_a_pick_in_both_lists_is_for_testing_only(root: Path) -> None:
    other = pick_id(2, session=6)
    (root / "train.csv").write_text(f"{ZEROS}\n{other}\n")
    index = read_defect_images(root)
    assert [pick.id for pick in index.train] == [ZEROS]
    assert [pick.id for pick in index.test] == [other]
    assert index.skipped == {"pick in train.csv that is also in test.csv": 1}


def test_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no data/"):
        read_defect_images(tmp_path)


def test_polygon_outside_the_image_gives_no_mask(root: Path) -> None:
    write_view(root / "data" / ZEROS, "0", polygon=[[60, 60], [70, 60], [70, 70]])
    assert read_defect_images(root).train[0].views[0].mask(48, 48) is None


def test_session_is_the_time_stamp() -> None:
    assert session_of("021005001652790856656") == "1652790856656"
    assert session_of("own-recording-7") == "own-recording-7"


def test_session_disjoint_parts_share_no_session(tmp_path: Path) -> None:
    write_defect_set(tmp_path, train=60, test=30, views=1)
    # The official lists leak: give every test pick the session of a training pick.
    index = read_defect_images(tmp_path)
    leaking = type(index)(tmp_path, index.train[::2], index.train[1::2])
    train, test = leaking.training_part("session_disjoint"), leaking.unseen_sessions("session_disjoint")
    assert 5 < len(train) < 30
    assert 3 < len(test) < 30
    assert not {p.session for p in train} & {p.session for p in test}
    assert {p.id for p in test} <= {p.id for p in leaking.test}
    assert leaking.unseen_sessions("official") == ()
    with pytest.raises(DatasetError, match="unknown"):
        leaking.training_part("random")


def test_held_out_part_is_by_session_and_does_not_depend_on_the_other_picks(tmp_path: Path) -> None:
    picks = read_defect_images(write_defect_set(tmp_path, train=60, test=2, views=1)).train
    learned, held = held_out(picks, 0.4, 1, "calibration")
    assert len(learned) + len(held) == 60
    assert 12 <= len(held) <= 36
    assert not {p.session for p in learned} & {p.session for p in held}
    assert held_out(picks[:20], 0.4, 1, "calibration")[1] == tuple(p for p in picks[:20] if p in held)


def test_share_of_held_out_sessions() -> None:
    share = np.mean([in_held_out_session(str(i), 0.25, "a") for i in range(20_000)])
    assert abs(share - 0.25) < 0.015
