from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mca_perception.datasets.armbench_defect_videos import (
    clip_frames,
    read_defect_clips,
    sample_clip,
)
from mca_perception.errors import DatasetError
from tests.support.defects import pick_id

NAMES = [pick_id(number) for number in range(5)]


def write_frames(path: Path, frames: Sequence[NDArray[np.uint8]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2] if frames else (660, 860)
    stream = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (width, height))
    for frame in frames:
        stream.write(frame[..., ::-1])
    stream.release()


def video(path: Path, frames: int) -> None:
    """Frames of rising brightness."""
    write_frames(path, [np.full((660, 860, 3), 10 * number, np.uint8) for number in range(frames)])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of all labels, and of every oddity."""
    root = tmp_path_factory.mktemp("clips")
    (root / "annotations").mkdir()
    for name, label in zip(NAMES, ("nominal", "open", "deconstruction", "multi_pick", "open"), strict=True):
        (root / "annotations" / f"{name}.json").write_text(json.dumps({"id": name, "label": label}))
        video(root / "videos" / f"{name}.mp4", 2)
    (root / "videos" / f"{NAMES[4]}.mp4").write_bytes(b"")
    (root / "annotations" / "broken.json").write_text("{")
    (root / "videos" / "broken.mp4").write_bytes(b"x")
    (root / "train.csv").write_text("\n".join([*NAMES[:2], str(int(NAMES[3])), NAMES[4], "broken", "absent"]))
    (root / "test.csv").write_text(f"{NAMES[2]}\r\n{NAMES[1]}\r\n")
    return root


def test_reads_two_independent_bits_and_counts_the_rest(root: Path) -> None:
    index = read_defect_clips(root)
    assert [(clip.id, clip.bits) for clip in index.train] == [(NAMES[0], (False, False))]
    assert [(clip.id, clip.bits) for clip in index.test] == [
        (NAMES[2], (False, True)),
        (NAMES[1], (True, False)),
    ]
    assert index.skipped == {
        "clip in train.csv that is also in test.csv": 1,
        "clip with a label outside the set": 1,
        "clip without a video": 2,
        "annotation missing or not readable": 1,
    }
    assert index.incomplete == {"id without its leading zeros": 1}


def test_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no videos/"):
        read_defect_clips(tmp_path)


def test_published_preprocessing(tmp_path: Path) -> None:
    frame = np.zeros((700, 900, 3), np.uint8)
    frame[80:650, 100:850] = (200, 120, 40)
    write_frames(tmp_path / "clip.mp4", [frame])
    (found,) = clip_frames(tmp_path / "clip.mp4")
    assert found.shape == (320, 320, 3)
    assert np.abs(found.reshape(-1, 3).astype(int) - (200, 120, 40)).max() < 40  # edges of a lossy video
    assert np.abs(found[2:-2, 2:-2].reshape(-1, 3).astype(int) - (200, 120, 40)).max() < 12


def test_frames_that_are_too_small_are_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "clip.mp4", [np.zeros((640, 900, 3), np.uint8)])
    with pytest.raises(DatasetError, match="900 x 640 pixels, at least 850 x 650"):
        next(clip_frames(tmp_path / "clip.mp4"))


@pytest.mark.parametrize(("frames", "count"), [(3, 5), (12, 4), (20, 2)])
def test_frames_are_spread_over_the_clip(tmp_path: Path, frames: int, count: int) -> None:
    video(tmp_path / "clip.mp4", frames)
    assert len(list(clip_frames(tmp_path / "clip.mp4"))) == frames
    levels = sample_clip(tmp_path / "clip.mp4", count).mean(axis=(1, 2, 3))
    assert len(levels) == count
    assert (np.diff(levels) >= 0).all()
    assert levels[0] < 12
    assert levels[-1] > 10 * (frames - 1) * 0.6


@pytest.mark.parametrize(
    ("content", "message"), [(b"no video", "cannot be opened"), (None, "no frame|cannot be opened")]
)
def test_corrupt_and_empty_videos_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "clip.mp4"
    if content is None:
        video(path, 0)
    else:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        next(clip_frames(path))
