import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from rosbags.rosbag2 import StoragePlugin

from mca_perception.errors import SourceError
from mca_perception.ros.images import decode_encoded
from mca_perception.ros.sources import CameraSource, encode, open_source
from tests.support.bags import COMPRESSED, RAW, damage, write_bag

Scene = Callable[..., NDArray[np.uint8]]


def test_folder_gives_its_files_as_they_are(tmp_path: Path, scene: Scene) -> None:
    cv2.imwrite(str(tmp_path / "b.png"), scene("red")[..., ::-1])
    cv2.imwrite(str(tmp_path / "a.jpg"), scene("green")[..., ::-1])
    cv2.imwrite(str(tmp_path / "c.bmp"), scene("blue")[..., ::-1])
    (tmp_path / "notes.txt").write_text("no image")
    first, second, third = open_source(str(tmp_path))
    assert (first.name, second.name, third.name) == ("a.jpg", "b.png", "c.bmp")
    assert first.encoded == (tmp_path / "a.jpg").read_bytes()
    np.testing.assert_array_equal(third.pixels, scene("blue"))
    data, image_format = encode(third)
    assert image_format == "jpeg"
    assert decode_encoded(data).shape == third.pixels.shape
    assert (first.container_id, first.product_ids) == ("", None)


def test_unreadable_files_are_skipped_and_counted(tmp_path: Path, scene: Scene) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), scene("red"))
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:100])
    (tmp_path / "3.jpg").write_bytes(b"")
    (tmp_path / "4.bmp").write_bytes(b"BM")
    source = open_source(str(tmp_path))
    assert [frame.name for frame in source] == ["1.png"]
    assert source.skipped == 3


@pytest.mark.parametrize(
    ("content", "container", "products"),
    [
        ({"container_id": "tote-1", "products": {"A": {}, "B": {}}}, "tote-1", ("A", "B")),
        ({"A": {"weight": 1}}, "scene", ("A",)),
        (None, "", None),
    ],
)
@pytest.mark.parametrize("below", ["", "images"])
def test_manifests_beside_the_images_name_the_container(
    tmp_path: Path, scene: Scene, content: object, container: str, products: object, below: str
) -> None:
    for folder in ("images", "manifests"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "scene.jpg"), scene("red"))
    if content is not None:
        (tmp_path / "manifests" / "scene.json").write_text(json.dumps(content))
    (frame,) = open_source(str(tmp_path / below))
    assert (frame.container_id, frame.product_ids) == (container, products)


def test_an_image_with_a_broken_manifest_is_skipped(tmp_path: Path, scene: Scene) -> None:
    for folder in ("images", "manifests"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "scene.jpg"), scene("red"))
    (tmp_path / "manifests" / "scene.json").write_text("[")
    source = open_source(str(tmp_path))
    assert list(source) == []
    assert source.skipped == 1


def test_video_gives_all_frames_with_their_times(tmp_path: Path, scene: Scene) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (160, 96))
    for colour in ("red", "green", "blue"):
        writer.write(scene(colour)[..., ::-1])
    writer.release()
    frames = list(open_source(str(path)))
    assert [frame.time_ns for frame in frames] == [0, 50_000_000, 100_000_000]
    assert np.abs(frames[0].pixels[48, 30].astype(int) - scene("red")[48, 30]).max() < 40


@pytest.mark.parametrize("plugin", list(StoragePlugin))
@pytest.mark.parametrize("kind", [RAW, COMPRESSED])
@pytest.mark.parametrize("file", [False, True])
def test_bags_give_pixels_stamps_and_frame(
    tmp_path: Path, scene: Scene, plugin: StoragePlugin, kind: str, file: bool
) -> None:
    pictures = [scene("red"), scene("blue")]
    write_bag(tmp_path / "bag", pictures, plugin=plugin, kind=kind)
    path = (
        next((tmp_path / "bag").glob("*.mcap" if plugin is StoragePlugin.MCAP else "*.db3"))
        if file
        else tmp_path / "bag"
    )
    source = open_source(str(path))
    for _ in range(2):  # a source can be read again
        frames = list(source)
        assert [frame.stamp_ns for frame in frames] == [1_000_000_000_000, 1_000_100_000_000]
        assert {frame.frame_id for frame in frames} == {"bin"}
        for frame, picture in zip(frames, pictures, strict=True):
            pixels = frame.pixels if frame.pixels is not None else decode_encoded(frame.encoded)
            np.testing.assert_array_equal(pixels, picture)
    source.close()


def test_the_topic_of_a_bag_must_be_clear(tmp_path: Path, scene: Scene) -> None:
    write_bag(tmp_path / "bag", [scene("red")], plugin=StoragePlugin.MCAP, topics=2)
    with pytest.raises(SourceError, match="choose one with `topic`"):
        open_source(str(tmp_path / "bag"))
    with pytest.raises(SourceError, match=r"no image topic /nothing .*camera0"):
        open_source(str(tmp_path / "bag"), topic="/nothing")
    assert len(list(open_source(str(tmp_path / "bag"), topic="/camera1/image"))) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: "", "no source given"),
        (lambda folder: str(folder / "nothing"), "does not exist"),
        (lambda folder: str(folder), "holds no images"),
        (lambda folder: str(write(folder / "clip.mp4", b"no video")), "neither a folder"),
        (lambda folder: str(write(folder / "log.mcap", b"no bag")), "cannot be read"),
        (lambda folder: str(write(folder / "log.db3", b"no bag")), "cannot be read"),
        (lambda folder: "/dev/null", "camera /dev/null cannot be opened"),
    ],
)
def test_sources_that_cannot_be_used_say_why(
    tmp_path: Path, make: Callable[[Path], str], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(make(tmp_path))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_cameras_are_live() -> None:
    assert CameraSource.live


def test_depth_and_camera_come_with_their_image(tmp_path: Path, scene: Scene) -> None:
    from mca_perception.pipeline.camera import Camera
    from mca_perception.pipeline.camera_files import write_camera

    for folder in ("images", "depth", "camera_info"):
        (tmp_path / folder).mkdir()
    camera = Camera((96, 160), np.array([[100.0, 0, 80], [0, 100, 48], [0, 0, 1]]))
    depth = np.arange(96 * 160, dtype=np.uint16).reshape(96, 160)
    for name in ("a", "b", "c"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), scene("red"))
        write_camera(tmp_path / "camera_info" / f"{name}.yaml", camera, "synth")
    cv2.imwrite(str(tmp_path / "depth" / "a.png"), depth)
    cv2.imwrite(str(tmp_path / "depth" / "c.png"), depth.astype(np.uint8))
    source = open_source(str(tmp_path))
    first, second = source
    np.testing.assert_array_equal(first.depth, depth)
    assert first.camera.image_size == (96, 160)
    assert second.depth is None
    assert source.skipped == 1  # depth of 8 bit


@pytest.mark.parametrize("plugin", list(StoragePlugin))
@pytest.mark.parametrize("file", [False, True])
def test_a_damaged_bag_gives_what_is_before_the_damage(
    tmp_path: Path, scene: Scene, plugin: StoragePlugin, file: bool
) -> None:
    write_bag(tmp_path / "bag", [scene("red")] * 40, plugin=plugin)
    (path,) = (path for path in (tmp_path / "bag").iterdir() if path.suffix != ".yaml")
    # Into the structure: wrong pixels alone cannot be noticed.
    damage(path, 0.75, 100_000 if plugin is StoragePlugin.MCAP else 10_000)
    source = open_source(str(path if file else tmp_path / "bag"))
    frames = []
    with pytest.raises(SourceError, match=r"bag .* is damaged: \d+ of 40 images can be read") as raised:
        frames.extend(source)  # keeps what came before
    assert 20 <= len(frames) < 40
    assert f"{len(frames)} of 40" in str(raised.value)
    assert "recover" in str(raised.value)
    assert len(frames) + source.skipped == 40
    np.testing.assert_array_equal(frames[0].pixels, scene("red"))
    source.close()


@pytest.mark.parametrize("plugin", list(StoragePlugin))
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.98])
def test_a_bag_that_was_cut_off_is_refused(
    tmp_path: Path, scene: Scene, plugin: StoragePlugin, share: float
) -> None:
    write_bag(tmp_path / "bag", [scene("red")] * 5, plugin=plugin)
    (path,) = (path for path in (tmp_path / "bag").iterdir() if path.suffix != ".yaml")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(SourceError, match=r"bag .* cannot be read .* complete .* recover"):
        open_source(str(tmp_path / "bag"))


def test_a_bag_whose_index_names_too_many_images_says_so(tmp_path: Path, scene: Scene) -> None:
    write_bag(tmp_path / "bag", [scene("red")] * 3, plugin=StoragePlugin.MCAP)
    metadata = tmp_path / "bag" / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("message_count: 3", "message_count: 5"))
    source = open_source(str(tmp_path / "bag"))
    with pytest.raises(SourceError, match="3 of 5 images can be read"):
        list(source)
    assert source.skipped == 2
