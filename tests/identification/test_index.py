from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest

from mca_perception.datasets.armbench import read_identification
from mca_perception.errors import DatasetError
from mca_perception.identification.index import INDEX_NAME, build_index, load_identification, read_index
from tests.support.odd_picks import write_odd_pick_set, write_pick


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    write_odd_pick_set(root)
    return root


def test_summary_counts_what_is_there_and_what_is_left_out(root) -> None:
    summary = build_index(root)
    assert (summary.picks, summary.products, summary.references) == (6, 2, 12)
    assert summary.skipped == {
        "pick without images": 1,
        "container.json missing or not readable": 1,
        "annotation.json missing or not readable": 1,
        "container.json empty or too long": 1,
        "annotation.json without GT_ID": 1,
        "pick folder missing": 1,
    }
    assert summary.incomplete == {
        "product with an empty reference folder": 1,
        "pick without all views": 1,
        "pick whose product has no references": 3,
        "pick whose product is not in its container": 1,
        "pick in several splits": 1,
    }
    assert summary.views == {"PickRGB": 6, "ToteWallRGB": 6, "OnArmLowRGB": 6, "FarTrayRGB": 5}
    assert summary.splits == {"trainset": 2, "testset": 4}
    assert summary.manifest_sizes == (1, 3, 3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"split": "all"},
        {"split": "testset"},
        {"split": "trainset"},
        {"limit": 2},
        {"split": "testset", "limit": 1},
    ],
)
def test_index_holds_what_the_folder_holds(root, options) -> None:
    build_index(root)
    expected = read_identification(root, **options)
    found = read_index(root / INDEX_NAME, root, **options)
    assert found.picks == expected.picks
    assert (found.references, found.splits, found.root) == (
        expected.references,
        expected.splits,
        expected.root,
    )
    if "split" in options and "limit" not in options and options["split"] != "all":
        assert found.skipped == expected.skipped
        assert +found.incomplete == +expected.incomplete


def test_index_is_read_in_place_of_the_picks(root) -> None:
    build_index(root)
    for file in root.rglob("*.json"):
        if file.parent != root:
            file.unlink()
    assert [p.id for p in load_identification(root).picks] == ["0001", "0002", "0003", "0004", "0005", "0011"]


def test_moved_folder_keeps_its_index(root, tmp_path) -> None:
    build_index(root)
    moved = root.rename(tmp_path / "elsewhere")
    found = read_index(moved / INDEX_NAME, moved)
    assert found.picks[0].views["PickRGB"] == moved / "Picks" / "0001" / "PickRGB.jpg"
    assert found.references["008"] == [moved / "Reference_Images" / "008" / "1.jpg"]


@pytest.mark.parametrize(
    "change",
    [
        lambda root: write_pick(root, "0099"),
        lambda root: (root / "Picks" / "0001").rename(root / "0001"),
        lambda root: (root / "Reference_Images" / "new").mkdir(),
        lambda root: (root / "train-test-split.json").write_text('{"testset": ["0001"]}'),
    ],
)
def test_index_of_another_state_is_not_used(root, change, caplog) -> None:
    build_index(root)
    change(root)
    with pytest.raises(DatasetError, match="another state"):
        read_index(root / INDEX_NAME, root)
    found = load_identification(root)
    assert "reading the folder instead" in caplog.text
    assert found.picks == read_identification(root).picks


def cut(text: str) -> str:
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"cannot be read|damaged"),
        (lambda text: "", "damaged"),
        (lambda text: "[]\n", "damaged"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "damaged"),
        (
            lambda text: "\n".join(
                line for line in text.splitlines() if '"0003"' not in line or "splits" in line
            ),
            "damaged",
        ),
        (lambda text: text.replace('"version": 1', '"version": 2'), "not an index"),
        (lambda text: text.replace('"views"', '"sights"'), "damaged"),
        (lambda text: text.replace("Reference_Images/008", "../../008"), "damaged"),
        (lambda text: text.replace('{"pick": "0001"', '{"pick": "../0001"'), "damaged"),
    ],
)
def test_damaged_index_is_refused(root, damage, message) -> None:
    build_index(root)
    path = root / INDEX_NAME
    path.write_text(damage(path.read_text()))
    with pytest.raises(DatasetError, match=message):
        read_index(path, root)


def test_unknown_or_unusable_split_is_refused(root) -> None:
    build_index(root)
    with pytest.raises(DatasetError, match="no split 'val'"):
        read_index(root / INDEX_NAME, root, split="val")
    with pytest.raises(DatasetError, match="no usable pick"):
        read_index(root / INDEX_NAME, root, split="trainset-objects")


def test_folder_without_usable_picks_leaves_no_index(tmp_path) -> None:
    write_pick(tmp_path, "0001", views=())
    (tmp_path / "Reference_Images").mkdir()
    with pytest.raises(DatasetError, match=r"no usable pick \(1 pick without images\)"):
        build_index(tmp_path)
    assert not list(tmp_path.glob("*index*"))
    with pytest.raises(DatasetError, match="has no Picks/"):
        build_index(tmp_path / "Picks")


def test_index_that_cannot_be_written_is_an_error(root, tmp_path) -> None:
    with pytest.raises(DatasetError, match="cannot be written"):
        build_index(root, tmp_path / "no folder" / "index")


class Attack:
    """Runs a command when it is unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_malicious_split_is_refused_and_not_executed(root, tmp_path) -> None:
    content = pickle.dumps({"trainset": ["0001"], "testset": [Attack(tmp_path / "executed")]})
    pickle.loads(content)
    assert (tmp_path / "executed").exists()
    (tmp_path / "executed").unlink()
    (root / "train-test-split.pickle").write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read safely"):
        build_index(root)
    assert not (tmp_path / "executed").exists()
    assert not (root / "train-test-split.json").exists()


def test_skips_are_counted_for_their_split_only(root) -> None:
    build_index(root)
    found = read_index(root / INDEX_NAME, root, split="testset")
    assert found.skipped == Counter({"pick folder missing": 1})
