from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mca_perception.datasets.catalogue import read_catalogue
from mca_perception.errors import DatasetError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg", "c, d.jpg"):
        (tmp_path / "images" / name).touch()
    return tmp_path


def test_ids_are_text_and_lines_of_one_product_come_together(folder) -> None:
    (folder / "list.csv").write_text(
        '\ufeffproduct_id,price,image\n007,1.50,images/a.jpg\n7,,images/b.jpg\n 007 ,2,"images/c, d.jpg"\n',
        encoding="utf-8",
    )
    skipped: Counter[str] = Counter()
    assert read_catalogue(folder / "list.csv", skipped) == {
        "007": [folder / "images" / "a.jpg", folder / "images" / "c, d.jpg"],
        "7": [folder / "images" / "b.jpg"],
    }
    assert not skipped


def test_unusable_lines_are_counted(folder) -> None:
    lines = ["a,images/a.jpg", "a,images/a.jpg", ",images/b.jpg", "b,", "c,images/none.jpg", "d", ""]
    (folder / "list.csv").write_text("product_id,image\n" + "\n".join(lines))
    skipped: Counter[str] = Counter()
    assert list(read_catalogue(folder / "list.csv", skipped)) == ["a"]
    assert skipped == {
        "image listed twice": 1,
        "line without product id": 1,
        "line without image": 2,
        "image missing": 1,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column image and no column product_id"),
        (b"id,image\n1,a.jpg\n", "no column product_id"),
        (b"product_id,image\n", "no usable line"),
        (b"product_id,image\n1,none.jpg\n", "1 image missing"),
        (b"product_id,image\n\xff\xfe,a.jpg\n", "cannot be read as UTF-8"),
        (b'product_id,image\n"1,a.jpg\n', "cannot be read as UTF-8 CSV"),
        (b"\x89PNG\r\n\x1a\n\0\0", "cannot be read|no column"),
    ],
)
def test_bad_lists_are_refused(folder, content, message) -> None:
    (folder / "list.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_catalogue(folder / "list.csv")


def test_missing_list_is_refused(folder) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_catalogue(folder / "none.csv")
