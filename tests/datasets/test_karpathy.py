from __future__ import annotations

import json
from pathlib import Path

import pytest

from mca_perception.datasets.karpathy import read_karpathy
from mca_perception.errors import DatasetError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    entries = []
    for i, split in enumerate(("train", "restval", "val", "test", "test")):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{i}.jpg").write_bytes(b"x")
        sentences = [{"raw": f" caption {i}{k} "} for k in range(2)]
        entries.append({"filepath": "images", "filename": f"{i}.jpg", "split": split, "sentences": sentences})
    entries += [
        {"filename": "gone.jpg", "split": "test", "sentences": [{"raw": "x"}]},
        {"filename": "../outside.jpg", "split": "test", "sentences": [{"raw": "x"}]},
        {"filepath": "images", "filename": "0.jpg", "split": "test", "sentences": [{"raw": " "}, 7]},
        "no entry",
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": entries}))
    return path


def test_a_split_comes_with_its_captions(file: Path) -> None:
    found = read_karpathy(file, "test")
    assert [image.path.name for image in found.images] == ["3.jpg", "4.jpg"]
    assert found.images[0].captions == ("caption 30", "caption 31")
    assert dict(found.skipped) == {"image missing or outside the folder": 2, "image without a caption": 1}
    assert len(read_karpathy(file, "train").images) == 2
    assert len(read_karpathy(file, "test", limit=1).images) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": 3}', '{"images": []}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=r"cannot be read|no usable image"):
        read_karpathy(path, "test")
