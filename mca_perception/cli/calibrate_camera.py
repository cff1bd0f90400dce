"""`mca calibrate camera`: intrinsics of a camera from pictures of a board."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mca_perception.errors import CameraError, InvalidImageError, SourceError

if TYPE_CHECKING:
    from mca_perception.ros.sources import Frame, Source


def command(
    out: Annotated[Path, typer.Option(help="camera_info YAML to write.")],
    images: Annotated[Path | None, typer.Option(help="Folder of pictures, video or bag.")] = None,
    topic: Annotated[
        str, typer.Option(help="Image topic: of the bag, or without --images of a running camera.")
    ] = "",
    board: Annotated[
        str, typer.Option(help="Chessboard: inner corners. ChArUco: squares. COLUMNSxROWS.")
    ] = "9x6",
    square: Annotated[float, typer.Option(help="Side of a square in metres.")] = 0.025,
    marker: Annotated[
        float | None, typer.Option(help="ChArUco: side of a marker in metres. Without it: a chessboard.")
    ] = None,
    dictionary: Annotated[str, typer.Option(help="ChArUco: OpenCV's dictionary of the markers.")] = "4X4_50",
    model: Annotated[
        str, typer.Option(help="plumb_bob, or rational_polynomial for wide lenses.")
    ] = "plumb_bob",
    name: Annotated[str, typer.Option(help="The camera's name. Default: that of the file.")] = "",
    count: Annotated[int, typer.Option(min=8, max=500, help="Pictures to take from a topic.")] = 40,
    force: Annotated[
        bool, typer.Option("--force", help="Write a calibration that is not good enough.")
    ] = False,
) -> None:
    """Calibrate a camera; refuses sets of pictures that do not determine it. Also writes a picture of the coverage.

    \f
    Raises:
        CameraError: unusable pictures or board, or a calibration that is not good enough.
        SourceError: the pictures cannot be read.
    """
    from mca_perception.cli import reports
    from mca_perception.cli.contact_sheets import write_image
    from mca_perception.pipeline.camera_calibration import calibrate_camera, draw_coverage
    from mca_perception.pipeline.camera_files import write_camera

    source = _open(images, topic, count)
    try:
        result = calibrate_camera(_board(board, square, marker, dictionary), _pictures(source), model=model)
    finally:
        source.close()
        if source.skipped:
            typer.echo(f"left out because they cannot be read: {source.skipped} pictures", err=True)
    picture = out.with_suffix(".coverage.png")
    reports.new_folder(out.parent)
    write_image(picture, draw_coverage(result))
    problems = result.problems()
    skipped = "; ".join(f"{number} {reason}" for reason, number in result.skipped.items()) or "none"
    (fx, _, cx), (_, fy, cy) = result.camera.matrix[:2]
    typer.echo(
        f"{len(result.views)} pictures used, skipped: {skipped}\n"
        f"reprojection error {result.rms:.3f} px, coverage {result.coverage:.0%}, {result.tilted} tilted, "
        f"focal length uncertain by {result.focal_deviation:.2%}\n"
        f"fx {fx:.2f}  fy {fy:.2f}  cx {cx:.2f}  cy {cy:.2f}  distortion {_numbers(result.camera.distortion)}\n"
        f"coverage -> {picture}"
    )
    if problems and not force:
        raise CameraError("not written: " + "; ".join(problems) + "; or write it all the same with --force")
    write_camera(out, result.camera, name or out.stem)
    typer.echo(f"calibration -> {out}")


def _open(images: Path | None, topic: str, count: int) -> Source:
    if images is not None:
        from mca_perception.ros.sources import open_source

        return open_source(str(images), topic=topic)
    if not topic:
        raise CameraError(
            "no pictures given; name a folder, video or bag with --images, or a camera with --topic"
        )
    from mca_perception.ros.topic_source import TopicSource

    return TopicSource(topic, count=count)


def _pictures(source: Source) -> Iterator[tuple[str, Any]]:
    """Names and pixels of the pictures: up to the damage, or up to where the camera stopped."""
    read = 0
    try:
        for frame in source:
            try:
                yield frame.name, _pixels(frame)
                read += 1
            except InvalidImageError:
                source.skipped += 1
    except SourceError as error:
        if not read:
            raise
        typer.echo(f"{error}; going on with the {read} pictures before that", err=True)


def _pixels(frame: Frame) -> Any:
    if frame.pixels is not None:
        return frame.pixels
    from mca_perception.datasets.images import decode_rgb

    return decode_rgb(frame.encoded or b"", frame.name)


def _board(text: str, square: float, marker: float | None, dictionary: str) -> Any:
    from mca_perception.pipeline.camera_calibration import Charuco, Chessboard

    match = re.fullmatch(r"(\d{1,3})x(\d{1,3})", text)
    if match is None:
        raise CameraError(f"board {text!r} must look like 9x6: corners (ChArUco: squares) along and across")
    columns, rows = int(match[1]), int(match[2])
    if marker is None:
        return Chessboard(columns, rows, square)
    return Charuco(columns, rows, square, marker, dictionary)


def _numbers(values: Any) -> str:
    return "[" + ", ".join(f"{value:.5f}" for value in values) + "]"
