"""`mca eval bag`: every image of a recording, the same result each time, and a recording to look at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

pytest.importorskip("rclpy")

from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from mca_perception.cli.main import app
from mca_perception.ros.bags import RAW

Scene = Callable[..., NDArray[np.uint8]]
SHOWN = (("red",), ("red", "green"), (), ("blue", "red", "green"))


@pytest.fixture(scope="module", params=["mcap", "sqlite3"])
def bag(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> Path:
    """Four images at 10 Hz; between the second and the third one that is damaged."""
    path = tmp_path_factory.mktemp("bag") / "recording"
    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    with Writer(path, version=9, storage_plugin=StoragePlugin[request.param.upper()]) as writer:
        connection = writer.add_connection("/camera/image", RAW, typestore=store)
        for i, colours in enumerate((*SHOWN[:2], None, *SHOWN[2:])):
            stamp = types["builtin_interfaces/msg/Time"](sec=1000, nanosec=i * 100_000_000)
            header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="bin")
            pixels = scene(*(colours or ())).reshape(-1)
            data = pixels if colours is not None else pixels[:100]
            message = types[RAW](header, 96, 160, "rgb8", 0, 480, data)
            writer.write(connection, i * 100_000_000, store.serialize_cdr(message, RAW))
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["eval", "bag", *map(str, arguments)])


def truth(scene: Scene, by: str) -> dict[str, Any]:
    """COCO labels of the discs, by stamp or by frame number."""
    from pycocotools import mask as coco_mask

    images, annotations = [], []
    for number, colours in enumerate(SHOWN):
        stamp = 1_000_000_000_000 + (number + (number >= 2)) * 100_000_000
        images.append({"id": number + 500, "stamp_ns": stamp} if by == "stamp_ns" else {"id": number})
        for place, colour in enumerate(colours):
            disc = (scene(*colours)[..., :3] != scene()).any(axis=-1)
            disc[:, : 5 + 50 * place] = False
            disc[:, 55 + 50 * place :] = False
            encoded = coco_mask.encode(np.asfortranarray(disc.astype(np.uint8)))
            ys, xs = np.nonzero(disc)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": images[-1]["id"],
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": float(disc.sum()),
                    "bbox": [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1],
                    "segmentation": {"size": [96, 160], "counts": encoded["counts"].decode()},
                }
            )
            assert colour
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "Object"}]}


def test_every_image_is_perceived_and_the_result_repeats(
    bag: Path, colour_bundle: Path, colour_gallery: Path, scene: Scene, tmp_path: Path
) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(truth(scene, "stamp_ns")))
    common = ("--bag", bag, "--model", colour_bundle, "--gallery", colour_gallery)
    first = run(*common, "--out", tmp_path / "a", "--labels", tmp_path / "labels.json")
    assert first.exit_code == 0, first.output
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert (metrics["frames"], metrics["objects"], metrics["skipped"]) == (4, 6, {"unreadable": 1})
    assert (metrics["labelled_frames"], metrics["labelled_objects"]) == (4, 6)
    assert metrics["mask_map50"] == metrics["box_map50"] == 1.0
    assert metrics["latency_ms"]["total"]["p50"] > 0
    frames = json.loads((tmp_path / "a" / "frames.json").read_text())
    assert [frame["time_ns"] for frame in frames] == [0, 100_000_000, 300_000_000, 400_000_000]
    assert [frame["stamp_ns"] for frame in frames] == [10**12 + frame["time_ns"] for frame in frames]
    best = [{item["products"][0]["product_id"] for item in frame["objects"]} for frame in frames]
    assert best == [{f"P-{colour}" for colour in colours} for colours in SHOWN]
    again = run(*common, "--out", tmp_path / "b", "--no-annotated")
    assert again.exit_code == 0
    for name in ("frames.json", "detections.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not (tmp_path / "b" / "annotated").exists()


def test_the_annotated_recording_opens_and_agrees(bag: Path, colour_bundle: Path, tmp_path: Path) -> None:
    done = run("--bag", bag, "--model", colour_bundle, "--out", tmp_path, "--tracking")
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "annotated").glob("*.mcap"))
    with AnyReader([tmp_path / "annotated"]) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        names = ("image/compressed", "overlay/compressed", "instance_mask", "objects", "detections")
        assert counts == {f"/perception/{name}": 4 for name in names}
        objects = [
            (time, reader.deserialize(data, connection.msgtype))
            for connection, time, data in reader.messages()
            if connection.topic == "/perception/objects"
        ]
    assert [time for time, _ in objects] == [0, 100_000_000, 300_000_000, 400_000_000]
    assert [len(message.objects) for _, message in objects] == [len(colours) for colours in SHOWN]
    assert {message.header.frame_id for _, message in objects} == {"bin"}
    ids = [{round(item.centroid.x): item.id for item in message.objects} for _, message in objects]
    assert ids[0].items() <= ids[1].items()  # the red disc stays where it is


def test_of_a_damaged_recording_is_used_what_can_be_read(
    bag: Path, colour_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(bag, tmp_path / "bag")
    (path,) = (path for path in (tmp_path / "bag").iterdir() if path.suffix != ".yaml")
    content = bytearray(path.read_bytes())
    begin, size = len(content) * 6 // 10, 60_000 if path.suffix == ".mcap" else 10_000
    content[begin : begin + size] = b"\xff" * size
    path.write_bytes(content)
    done = run("--bag", tmp_path / "bag", "--model", colour_bundle, "--out", tmp_path / "out")
    if path.suffix == ".mcap":  # all five images are in the one chunk
        assert "is damaged: 0 of 5 images can be read" in str(done.exception)
        return
    assert done.exit_code == 0, done.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert 0 < metrics["frames"] < 4
    assert metrics["frames"] + metrics["skipped"]["unreadable"] == 5
    assert f"bag {tmp_path / 'bag'} is damaged" in metrics["damage"]
    assert metrics["damage"] in done.output
    assert list((tmp_path / "out" / "annotated").glob("*.mcap"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("no json", "cannot be read"),
        ('{"images": []}', "cannot be read"),
        ('{"images": [{"id": 77}], "annotations": [], "categories": []}', "is in the recording"),
    ],
)
def test_labels_that_cannot_be_used_are_named(
    bag: Path, colour_bundle: Path, tmp_path: Path, labels: str, message: str
) -> None:
    (tmp_path / "labels.json").write_text(labels)
    done = run(
        *("--bag", bag, "--model", colour_bundle, "--out", tmp_path, "--no-annotated"),
        *("--labels", tmp_path / "labels.json", "--limit", 1),
    )
    assert message in str(done.exception)


def test_labels_may_name_frames_by_number(
    bag: Path, colour_bundle: Path, scene: Scene, tmp_path: Path
) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(truth(scene, "id")))
    done = run(
        *("--bag", bag, "--model", colour_bundle, "--out", tmp_path, "--no-annotated"),
        *("--labels", tmp_path / "labels.json", "--limit", 2),
    )
    assert done.exit_code == 0, done.output
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["frames"], metrics["labelled_frames"]) == (2, 2)
    assert metrics["mask_map50"] == 1.0
