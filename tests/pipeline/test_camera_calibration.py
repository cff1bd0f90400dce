"""Calibration against cameras whose parameters are known: boards are drawn ray by ray."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from mca_perception.cli.main import app
from mca_perception.errors import CameraError
from mca_perception.pipeline.camera import Camera
from mca_perception.pipeline.camera_calibration import (
    Board,
    Charuco,
    Chessboard,
    calibrate_camera,
    draw_coverage,
)
from mca_perception.pipeline.camera_files import read_camera

SIZE = (300, 400)
CAMERA = Camera(
    SIZE,
    np.array([[380.0, 0, 204.0], [0, 384.0, 147.0], [0, 0, 1]]),
    np.array([-0.22, 0.06, 0.0, 0.0, 0.0]),
)
CHESSBOARD = Chessboard(7, 5, 0.03)
CHARUCO = Charuco(8, 6, 0.03, 0.022)
Pose = tuple[tuple[float, float, float], tuple[float, float, float]]


def artwork(board: Board) -> NDArray[np.uint8]:
    """The board as print, 40 pixels per square and a white border of one square."""
    if isinstance(board, Charuco):
        print_ = board.board.generateImage((40 * board.columns, 40 * board.rows))
    else:
        assert isinstance(board, Chessboard)
        squares = np.indices((board.rows + 1, board.columns + 1)).sum(axis=0) % 2 * 255
        print_ = np.kron(squares, np.ones((40, 40))).astype(np.uint8)
    return np.pad(print_, 40, constant_values=255)


def photograph(board: Any, pose: Pose) -> NDArray[np.uint8]:
    """What the camera sees of a board that is turned by degrees about its middle, at a place in metres."""
    degrees, centre = pose
    turn = cv2.Rodrigues(np.deg2rad(np.array(degrees)))[0]
    picture = artwork(board).astype(np.float32)
    rays = np.concatenate([CAMERA.rays.astype(np.float64), np.ones((*SIZE, 1))], axis=-1)
    depth = (np.asarray(centre) @ turn[:, 2]) / (rays @ turn[:, 2])
    local = (rays * depth[..., None] - centre) @ turn[:, :2] / board.square_m * 40
    where = (local + np.array(picture.shape[::-1]) / 2 - 0.5).astype(np.float32)
    seen = cv2.remap(picture, where[..., 0], where[..., 1], cv2.INTER_LINEAR, borderValue=120)
    return np.repeat(np.asarray(seen, np.uint8)[..., None], 3, axis=2)


def poses(tilt: float = 25.0) -> list[Pose]:
    """Boards all over the picture, tilted in all directions."""
    found: list[Pose] = []
    for i, (x, y) in enumerate((x, y) for y in (-1, 0, 1) for x in (-1.3, -0.4, 0.4, 1.3)):
        z = 0.48 + 0.04 * (i % 3)
        turn = (tilt * np.sin(1.7 * i), tilt * np.cos(2.3 * i), 17.0 * i % 40)
        found.append((turn, (0.1 * x, 0.09 * y, z)))
    return found


def pictures(board: Board, chosen: Sequence[Pose]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for number, pose in enumerate(chosen):
        yield f"{number}.png", photograph(board, pose)


@pytest.mark.parametrize("board", [CHESSBOARD, CHARUCO], ids=["chessboard", "charuco"])
def test_the_camera_is_found_again(board: Board) -> None:
    result = calibrate_camera(
        board, [*pictures(board, poses()), ("empty", np.full((*SIZE, 3), 120, np.uint8))]
    )
    assert result.problems() == []
    assert result.skipped["no board found"] >= 1
    assert len(result.views) >= 10
    assert result.rms < 0.3
    assert result.camera.matrix == pytest.approx(CAMERA.matrix, rel=0.01, abs=2.0)
    # Where the model matters: a ray through the corner of the picture.
    assert result.camera.rays[10, 10] == pytest.approx(CAMERA.rays[10, 10], abs=0.02)
    picture = draw_coverage(result)
    assert picture.shape == (*SIZE, 3)
    assert (picture == (255, 220, 60)).all(axis=-1).any()


def test_pictures_that_do_not_fit_the_others_are_left_out() -> None:
    shown = list(pictures(CHESSBOARD, poses()))
    stretched = cv2.resize(shown[5][1], (400, 420))[60:360]
    result = calibrate_camera(CHESSBOARD, [*shown, ("stretched", np.asarray(stretched, np.uint8))])
    assert result.skipped["does not fit the others"] >= 1
    assert "stretched" not in result.errors
    assert result.camera.matrix[0, 0] == pytest.approx(380, rel=0.01)


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        (poses(tilt=0.0), "tilt it in different directions"),
        ([(turn, (0.0, 0.0, 1.1)) for turn, _ in poses()], "in the corners and at the edges"),
    ],
)
def test_sets_that_do_not_determine_the_camera_are_refused(chosen: list[Pose], text: str) -> None:
    result = calibrate_camera(CHESSBOARD, pictures(CHESSBOARD, chosen))
    assert text in "; ".join(result.problems())


def test_too_few_and_unequal_pictures_are_refused() -> None:
    with pytest.raises(CameraError, match="at least 8 are needed"):
        calibrate_camera(CHESSBOARD, pictures(CHESSBOARD, poses()[:5]))
    with pytest.raises(CameraError, match="each resolution by itself"):
        calibrate_camera(
            CHESSBOARD, [("a", np.zeros((*SIZE, 3), np.uint8)), ("b", np.zeros((50, 60, 3), np.uint8))]
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chessboard(2, 6, 0.1), "2 x 6"),
        (lambda: Chessboard(6, 9, 0.0), "in metres"),
        (lambda: Charuco(8, 6, 0.03, 0.04), "do not fit"),
        (lambda: Charuco(8, 6, 0.03, 0.02, "9X9_1"), "does not exist"),
    ],
)
def test_impossible_boards_are_refused(make: Any, message: str) -> None:
    with pytest.raises(CameraError, match=message):
        make()


def test_the_command_writes_a_calibration_or_says_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, image in pictures(CHESSBOARD, poses()):
        cv2.imwrite(str(folder / name), image)
    (folder / "broken.jpg").write_bytes(b"no picture")
    arguments = ["calibrate", "camera", "--images", str(folder), "--board", "7x5", "--square", "0.03"]
    good = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "cal" / "tote.yaml")])
    assert good.exit_code == 0, good.output
    assert "reprojection error 0." in good.output
    assert "cannot be read: 1 pictures" in good.stderr
    camera = read_camera(tmp_path / "cal" / "tote.yaml")
    assert camera.matrix[0, 0] == pytest.approx(380, rel=0.01)
    assert cv2.imread(str(tmp_path / "cal" / "tote.coverage.png")).shape == (*SIZE, 3)
    for path in sorted(folder.glob("*.png"))[5:]:
        path.unlink()
    bad = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "bad.yaml")])
    assert isinstance(bad.exception, CameraError)
    wrong = CliRunner().invoke(app, [*arguments[:4], "--board", "7", "--out", str(tmp_path / "bad.yaml")])
    assert "must look like 9x6" in str(wrong.exception)
    assert not (tmp_path / "bad.yaml").exists()


@pytest.mark.parametrize(("start", "readable"), [(0.75, True), (0.05, False)])
def test_of_a_damaged_bag_the_pictures_before_the_damage_are_used(
    tmp_path: Path, start: float, readable: bool
) -> None:
    pytest.importorskip("rclpy")
    from rosbags.rosbag2 import StoragePlugin

    from tests.support.bags import damage, write_bag

    taken = [image[..., ::-1].copy() for _, image in pictures(CHESSBOARD, poses())]
    write_bag(tmp_path / "bag", taken * 2, plugin=StoragePlugin.MCAP)
    damage(next((tmp_path / "bag").glob("*.mcap")), start, 500_000)
    arguments = [
        "calibrate",
        "camera",
        "--images",
        str(tmp_path / "bag"),
        "--board",
        "7x5",
        "--square",
        "0.03",
    ]
    answer = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "tote.yaml")])
    assert (answer.exit_code == 0) is readable, answer.output
    assert (tmp_path / "tote.yaml").exists() is readable
    if readable:
        assert "is damaged" in answer.stderr
        assert "pictures before that" in answer.stderr
        (used,) = re.findall(r"going on with the (\d+) pictures", answer.stderr)
        assert f"cannot be read: {2 * len(taken) - int(used)} pictures" in answer.stderr
