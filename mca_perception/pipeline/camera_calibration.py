"""Calibrates a camera from pictures of a board, and refuses sets of pictures that cannot determine it (Zhang 2000)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import CameraError
from mca_perception.geometry import Size
from mca_perception.pipeline.camera import Camera

__all__ = ["Board", "CameraCalibration", "Charuco", "Chessboard", "View", "calibrate_camera", "draw_coverage"]

GRID = (6, 8)
"""Rows and columns of the cells in which coverage is counted."""

MIN_VIEWS = 8
MIN_COVERAGE = 0.5
MIN_TILTED_VIEWS = 3
TILT_DEGREES = 12.0
MAX_RMS_PIXELS = 1.0
MAX_FOCAL_DEVIATION = 0.01
_OUTLIER = 3.0
_OUTLIER_FLOOR_PIXELS = 0.5
_MIN_CORNERS = 6


@dataclass(frozen=True)
class View:
    """A board in a picture.

    Attributes:
        name: of the picture.
        board: float32 ``[P, 3]`` corners in metres on the board.
        pixels: float32 ``[P, 2]`` the same corners in the picture, in coordinates of pixel centres.
    """

    name: str
    board: NDArray[np.float32]
    pixels: NDArray[np.float32]


class Board(Protocol):
    """A board with corners at known places."""

    def find(self, name: str, image: NDArray[np.uint8]) -> View | None:
        """Find it in a picture uint8 ``[H, W, 3]`` RGB; None when it is not there, or not enough of it."""
        ...


@dataclass(frozen=True)
class Chessboard:
    """A chessboard; all its inner corners must be visible.

    Attributes:
        columns: inner corners along a row.
        rows: inner corners along a column.
        square_m: side of a square in metres.
    """

    columns: int
    rows: int
    square_m: float

    def __post_init__(self) -> None:
        _check_board(self.columns, self.rows, self.square_m, least=3)

    def find(self, name: str, image: NDArray[np.uint8]) -> View | None:
        """See :class:`Board`."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        found, corners = cv2.findChessboardCornersSB(
            grey, (self.columns, self.rows), flags=cv2.CALIB_CB_EXHAUSTIVE
        )
        if not found:
            return None
        grid = np.zeros((self.rows * self.columns, 3), np.float32)
        grid[:, :2] = np.mgrid[0 : self.columns, 0 : self.rows].T.reshape(-1, 2) * self.square_m
        return View(name, grid, np.asarray(corners, np.float32).reshape(-1, 2))


@dataclass(frozen=True)
class Charuco:
    """A ChArUco board; parts of it may be hidden.

    Attributes:
        columns: squares along a row.
        rows: squares along a column.
        square_m: side of a square in metres.
        marker_m: side of a marker in metres.
        dictionary: name of the markers' dictionary in OpenCV, such as ``4X4_50``.
    """

    columns: int
    rows: int
    square_m: float
    marker_m: float
    dictionary: str = "4X4_50"

    def __post_init__(self) -> None:
        _check_board(self.columns, self.rows, self.square_m, least=3)
        if not 0 < self.marker_m < self.square_m:
            raise CameraError(
                f"markers of {self.marker_m:g} m do not fit into squares of {self.square_m:g} m"
            )
        if not hasattr(cv2.aruco, f"DICT_{self.dictionary}"):
            raise CameraError(f"marker dictionary {self.dictionary!r} does not exist; try 4X4_50 or 5X5_100")

    @property
    def board(self) -> cv2.aruco.CharucoBoard:
        """OpenCV's description of the board."""
        dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{self.dictionary}"))
        return cv2.aruco.CharucoBoard((self.columns, self.rows), self.square_m, self.marker_m, dictionary)

    def find(self, name: str, image: NDArray[np.uint8]) -> View | None:
        """See :class:`Board`."""
        board = self.board
        corners, ids, _, _ = cv2.aruco.CharucoDetector(board).detectBoard(
            cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        )
        if ids is None or len(ids) < _MIN_CORNERS:
            return None
        places = np.asarray(board.getChessboardCorners(), np.float32)[np.asarray(ids).ravel()]
        if min(np.ptp(places[:, 0]), np.ptp(places[:, 1])) == 0:  # corners on one line determine nothing
            return None
        return View(name, places, np.asarray(corners, np.float32).reshape(-1, 2))


@dataclass(frozen=True)
class CameraCalibration:
    """A calibration and how good it is.

    Attributes:
        camera: the calibration.
        rms: reprojection error in pixels, root of the mean square over all corners.
        errors: the same by picture.
        focal_deviation: standard deviation of the focal lengths, relative to them; the larger one.
        coverage: share of the picture's cells (6 x 8) in which corners were seen.
        tilted: pictures in which the board is tilted by 12 degrees or more.
        views: pictures that were used.
        skipped: pictures that were not, by reason.
    """

    camera: Camera
    rms: float
    errors: dict[str, float]
    focal_deviation: float
    coverage: float
    tilted: int
    views: tuple[View, ...]
    skipped: Counter[str] = field(default_factory=Counter)

    def problems(self) -> list[str]:
        """Why the set of pictures does not determine the camera well enough; empty when it does."""
        found = []
        if self.coverage < MIN_COVERAGE:
            found.append(
                f"the board was seen in {self.coverage:.0%} of the picture, {MIN_COVERAGE:.0%} are needed: "
                "take pictures with the board in the corners and at the edges"
            )
        if self.tilted < MIN_TILTED_VIEWS:
            found.append(
                f"the board is tilted by {TILT_DEGREES:g} degrees or more in {self.tilted} pictures, "
                f"{MIN_TILTED_VIEWS} are needed: tilt it in different directions"
            )
        if self.rms > MAX_RMS_PIXELS:
            found.append(
                f"the reprojection error is {self.rms:.2f} pixels, at most {MAX_RMS_PIXELS:g} is allowed: check the "
                "board's size and flatness, and that pictures are sharp"
            )
        if self.focal_deviation > MAX_FOCAL_DEVIATION:
            found.append(
                f"the focal length is uncertain by {self.focal_deviation:.1%}, at most {MAX_FOCAL_DEVIATION:.0%} is "
                "allowed: take more pictures, nearer and more tilted"
            )
        return found


def calibrate_camera(
    board: Board, pictures: Iterable[tuple[str, NDArray[np.uint8]]], *, model: str = "plumb_bob"
) -> CameraCalibration:
    """Calibrate from pictures of a board.

    Args:
        board: what was photographed.
        pictures: names and images uint8 ``[H, W, 3]`` RGB of one size.
        model: ``plumb_bob`` or ``rational_polynomial``.

    Raises:
        CameraError: fewer than 8 pictures show the board, sizes differ, or no camera fits.
    """
    flags = {"plumb_bob": 0, "rational_polynomial": cv2.CALIB_RATIONAL_MODEL}
    if model not in flags:
        raise CameraError(
            f"distortion model {model!r} cannot be calibrated; choose one of {', '.join(flags)}"
        )
    views, size, skipped = _find_all(board, pictures)
    while True:
        if len(views) < MIN_VIEWS or size is None:
            raise CameraError(
                f"{len(views)} usable pictures show the board, at least {MIN_VIEWS} are needed; take more, and check "
                f"the board's number of corners (skipped: {_reasons(skipped)})"
            )
        result = _solve(views, size, model, flags[model], skipped)
        limit = max(_OUTLIER * float(np.median(list(result.errors.values()))), _OUTLIER_FLOOR_PIXELS)
        kept = [view for view in views if result.errors[view.name] <= limit]
        if len(kept) == len(views):
            return result
        skipped["does not fit the others"] += len(views) - len(kept)
        views = kept


def _find_all(
    board: Board, pictures: Iterable[tuple[str, NDArray[np.uint8]]]
) -> tuple[list[View], Size | None, Counter[str]]:
    views: list[View] = []
    size: Size | None = None
    skipped: Counter[str] = Counter()
    for name, image in pictures:
        here = (image.shape[0], image.shape[1])
        if size is not None and here != size:
            raise CameraError(
                f"picture {name} is {here[1]} x {here[0]}, those before it {size[1]} x {size[0]}; "
                "calibrate each resolution by itself"
            )
        size = here
        view = board.find(name, image)
        if view is None:
            skipped["no board found"] += 1
        else:
            views.append(view)
    return views, size, skipped


def _solve(views: list[View], size: Size, model: str, flags: int, skipped: Counter[str]) -> CameraCalibration:
    try:
        rms, matrix, distortion, rotations, _, deviations, _, errors = cv2.calibrateCameraExtended(
            [view.board for view in views],
            [view.pixels for view in views],
            (size[1], size[0]),
            np.eye(3),
            np.zeros(8 if model == "rational_polynomial" else 5),
            flags=flags,
        )
    except cv2.error as error:
        raise CameraError(f"no camera fits these pictures ({error.err}); take others") from error
    coefficients = np.asarray(distortion, np.float64).ravel()[: 8 if model == "rational_polynomial" else 5]
    tilts = [np.degrees(np.arccos(min(1.0, abs(cv2.Rodrigues(turn)[0][2, 2])))) for turn in rotations]
    focal = np.array([matrix[0, 0], matrix[1, 1]])
    return CameraCalibration(
        camera=Camera(size, np.asarray(matrix, np.float64), coefficients, model),
        rms=float(rms),
        errors={view.name: float(error) for view, error in zip(views, np.ravel(errors), strict=True)},
        focal_deviation=float((np.ravel(deviations)[:2] / focal).max()),
        coverage=float((_cells(views, size) > 0).mean()),
        tilted=int(sum(tilt >= TILT_DEGREES for tilt in tilts)),
        views=tuple(views),
        skipped=skipped,
    )


def draw_coverage(calibration: CameraCalibration) -> NDArray[np.uint8]:
    """A picture of where corners were seen: green cells are covered, each dot is a corner.

    Returns:
        uint8 ``[H, W, 3]`` RGB of the camera's size.
    """
    height, width = calibration.camera.image_size
    picture = np.full((height, width, 3), 40, np.uint8)
    counts = _cells(list(calibration.views), (height, width))
    for row, column in np.ndindex(counts.shape):
        top, bottom = (height * r // GRID[0] for r in (row, row + 1))
        left, right = (width * c // GRID[1] for c in (column, column + 1))
        if counts[row, column]:
            picture[top:bottom, left:right] = (30, 90 + min(60, 6 * int(counts[row, column])), 50)
        cv2.rectangle(picture, (left, top), (right, bottom), (70, 70, 70), 1)
    radius = max(2, width // 300)
    for view in calibration.views:
        for x, y in view.pixels:
            cv2.circle(picture, (round(float(x)), round(float(y))), radius, (255, 220, 60), -1, cv2.LINE_AA)
    return picture


def _cells(views: list[View], size: Size) -> NDArray[np.int64]:
    """Corners by cell, ``[6, 8]``."""
    points = np.concatenate([view.pixels for view in views])
    edges = [np.linspace(0, side, cells + 1) for side, cells in zip(size, GRID, strict=True)]
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=edges)
    return np.asarray(counts, np.int64)


def _reasons(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "none"


def _check_board(columns: int, rows: int, square_m: float, *, least: int) -> None:
    if min(columns, rows) < least or max(columns, rows) > 100:
        raise CameraError(f"a board of {columns} x {rows} cannot be used; give {least} to 100 each way")
    if not 0 < square_m < 10:
        raise CameraError(f"squares of {square_m:g} m cannot be used; give their side in metres")
