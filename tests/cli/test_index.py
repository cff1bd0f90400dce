from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest

from mca_perception.cli.main import main
from mca_perception.identification.index import INDEX_NAME, read_index


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "Picks" / "0001"
    folder.mkdir(parents=True)
    (tmp_path / "Reference_Images" / "007").mkdir(parents=True)
    for path in (folder / "PickRGB.jpg", tmp_path / "Reference_Images" / "007" / "1.jpg"):
        cv2.imwrite(str(path), np.full((10, 12, 3), 120, np.uint8))
    (folder / "container.json").write_text('{"007": {}}')
    (folder / "annotation.json").write_text('{"GT_ID": "007"}')
    (tmp_path / "Picks" / "0002").mkdir()
    return tmp_path


@pytest.mark.parametrize("as_json", [True, False])
def test_build(root, monkeypatch, capsys, as_json) -> None:
    options = ["--json"] if as_json else []
    monkeypatch.setattr(sys, "argv", ["mca", "index", "build", "--data", str(root), *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    printed = capsys.readouterr().out
    assert [p.id for p in read_index(root / INDEX_NAME, root).picks] == ["0001"]
    if as_json:
        figures = json.loads(printed)
        assert (figures["picks"], figures["products"], figures["views"]) == (1, 1, {"PickRGB": 1})
        assert figures["skipped"] == {"container.json missing or not readable": 1}
    else:
        assert "1  container.json missing or not readable" in printed


def test_build_of_something_else_ends_with_two(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["mca", "index", "build", "--data", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "has no Picks/" in capsys.readouterr().err
