"""The source node as a process; the test plays the perception node."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from mca_perception_msgs.msg import PerceivedObjects
from mca_perception_msgs.srv import SetContainer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage, Image

from mca_perception.ros import qos
from mca_perception.ros.conversions import stamp_ns
from mca_perception.ros.diagnostics import DiagnosticsPublisher, read_status
from mca_perception.ros.images import decode_compressed, decode_image

pytestmark = pytest.mark.xdist_group("test_source_node")

Scene = Callable[..., NDArray[np.uint8]]
COLOURS = ("red", "green", "blue")


class Perception:
    """Takes images, answers them like the perception node, and keeps what the source says about itself."""

    def __init__(self, client: Any, *, answers: bool = True, other_readers: int = 0) -> None:
        """Subscribe to the images last: the source waits for their reader, and then knows the others."""
        self.client = client
        self._answers = answers
        self.images: list[Any] = []
        self.events: list[str] = []
        self.facts: dict[str, str] = {}
        self.statuses = 0
        node = client.node
        self._objects = node.create_publisher(PerceivedObjects, "objects", qos.RESULTS)
        status = DiagnosticsPublisher(node, "perception")
        node.create_timer(
            0.1,
            lambda: status.publish(
                DiagnosticStatus.OK,
                "active",
                {"state": "active", "objects_subscribers": self._readers() + other_readers},
            ),
        )
        node.create_subscription(DiagnosticArray, "/diagnostics", self._status, qos.DIAGNOSTICS)
        node.create_subscription(Image, "image", self._take, qos.EVERY_IMAGE)
        node.create_subscription(CompressedImage, "image/compressed", self._take, qos.EVERY_IMAGE)

    def _readers(self) -> int:
        return int(self._objects.get_subscription_count())

    def _take(self, message: Any) -> None:
        self.images.append(message)
        self.events.append("image")
        if self._answers:
            self._objects.publish(PerceivedObjects(header=message.header))

    def _status(self, array: DiagnosticArray) -> None:
        if facts := read_status(array, "/perception", "source"):
            self.facts = facts
            self.statuses += 1

    def offer_containers(self) -> None:
        def answer(request: Any, response: Any) -> Any:
            self.events.append(f"{request.container_id}:{','.join(request.product_ids)}")
            response.success = True
            return response

        self.client.node.create_service(SetContainer, "set_container", answer)

    def run(self, source: Any) -> int:
        """Answer until the source ends; returns its exit code."""
        self.client.wait(lambda: source.process.poll() is not None, 60, "the end of the source")
        self.client.wait(
            lambda: self.facts.get("finished") == "true" or source.process.returncode, what="its status"
        )
        return int(source.process.returncode)


def write_folder(folder: Path, scene: Scene) -> Path:
    folder.mkdir(exist_ok=True)
    for i, colour in enumerate(COLOURS):
        cv2.imwrite(str(folder / f"{i}.png"), scene(colour)[..., ::-1])
    return folder


def write_video(folder: Path, scene: Scene) -> Path:
    writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (160, 96))
    for colour in COLOURS:
        writer.write(scene(colour)[..., ::-1])
    writer.release()
    return folder / "clip.avi"


def write_bag(folder: Path, scene: Scene, plugin: StoragePlugin = StoragePlugin.MCAP) -> Path:
    store = get_typestore(Stores.ROS2_HUMBLE)
    types, kind = store.types, "sensor_msgs/msg/Image"
    with Writer(folder / "bag", version=9, storage_plugin=plugin) as writer:
        connection = writer.add_connection("/camera/image", kind, typestore=store)
        for i, colour in enumerate(COLOURS):
            stamp = types["builtin_interfaces/msg/Time"](sec=1000 + i, nanosec=5)
            header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="bin_camera")
            image = types[kind](header, 96, 160, "rgb8", 0, 480, scene(colour).reshape(-1))
            writer.write(connection, i * 40_000_000, store.serialize_cdr(image, kind))
    return folder / "bag"


@pytest.mark.parametrize("encoding", ["raw", "compressed"])
@pytest.mark.parametrize(
    ("write", "frame_id"), [(write_folder, "camera"), (write_video, "camera"), (write_bag, "bin_camera")]
)
def test_every_image_arrives_in_order_with_growing_stamps(
    start_node: Callable[..., Any],
    client: Any,
    scene: Scene,
    tmp_path: Path,
    write: Callable[[Path, Scene], Path],
    frame_id: str,
    encoding: str,
) -> None:
    perception = Perception(client)
    before = client.node.get_clock().now().nanoseconds
    source = start_node(
        "source_node", source=str(write(tmp_path, scene)), encoding=encoding, wait_for_perception=True
    )
    assert perception.run(source) == 0
    assert len(perception.images) == 3
    stamps = [stamp_ns(message.header.stamp) for message in perception.images]
    assert before < stamps[0] < stamps[1] < stamps[2] < client.node.get_clock().now().nanoseconds
    for message, colour in zip(perception.images, COLOURS, strict=True):
        assert message.header.frame_id == frame_id
        assert isinstance(message, Image if encoding == "raw" else CompressedImage)
        pixels = decode_image(message) if encoding == "raw" else decode_compressed(message)
        assert np.abs(pixels[48, 30].astype(int) - scene(colour)[48, 30]).max() < 50
    assert perception.facts["frames_sent"] == perception.facts["frames_answered"] == "3"
    assert "3 sent, 3 answered" in source.output()


def test_a_bag_can_keep_its_stamps(
    start_node: Callable[..., Any], client: Any, scene: Scene, tmp_path: Path
) -> None:
    perception = Perception(client)
    source = start_node(
        "source_node", source=str(write_bag(tmp_path, scene)), keep_stamps=True, frame_id="mine"
    )
    assert perception.run(source) == 0
    assert [message.header.stamp.sec for message in perception.images] == [1000, 1001, 1002]
    assert {message.header.frame_id for message in perception.images} == {"mine"}


def test_a_damaged_bag_is_played_up_to_the_damage_and_says_so(
    start_node: Callable[..., Any], client: Any, scene: Scene, tmp_path: Path
) -> None:
    path = write_bag(tmp_path, scene, StoragePlugin.SQLITE3) / "bag.db3"
    content = bytearray(path.read_bytes())
    begin = len(content) * 3 // 4
    content[begin : begin + 10_000] = b"\xff" * 10_000
    path.write_bytes(content)
    perception = Perception(client)
    source = start_node("source_node", source=str(path))
    assert perception.run(source) == 0
    assert len(perception.images) == 2
    assert (perception.facts["frames_sent"], perception.facts["frames_skipped"]) == ("2", "1")
    assert f"bag {path} is damaged: 2 of 3 images can be read" in source.output()
    assert "2 sent, 2 answered, 1 unreadable and skipped" in source.output()
    assert "Traceback" not in source.output()


def test_containers_are_announced_before_their_image(
    start_node: Callable[..., Any], client: Any, scene: Scene, tmp_path: Path
) -> None:
    write_folder(tmp_path / "images", scene)
    (tmp_path / "manifests").mkdir()
    for i, name in enumerate(("tote-a", "tote-a", "tote-b")):
        content = {"container_id": name, "products": {"P-1": {}, "P-2": {}}}
        (tmp_path / "manifests" / f"{i}.json").write_text(json.dumps(content))
    perception = Perception(client)
    perception.offer_containers()
    source = start_node("source_node", source=str(tmp_path / "images"))
    assert perception.run(source) == 0
    assert perception.events == ["tote-a:P-1,P-2", "image", "image", "tote-b:P-1,P-2", "image"]


def test_loops_stop_at_the_wanted_number(
    start_node: Callable[..., Any], client: Any, scene: Scene, tmp_path: Path
) -> None:
    perception = Perception(client)
    source = start_node("source_node", source=str(write_folder(tmp_path, scene)), loop=True, max_frames=7)
    assert perception.run(source) == 0
    assert len(perception.images) == 7


def test_unanswered_images_hold_the_source_back_and_are_counted(
    start_node: Callable[..., Any], client: Any, scene: Scene, tmp_path: Path
) -> None:
    perception = Perception(client, answers=False)
    source = start_node(
        "source_node", source=str(write_folder(tmp_path, scene)), max_in_flight=1, answer_timeout_s=0.3
    )
    assert perception.run(source) == 0
    assert len(perception.images) == 3
    assert perception.facts["frames_unanswered"] == "3"
    assert "3 unanswered" in source.output()


def test_unreadable_files_are_counted_and_left_out(
    start_node: Callable[..., Any], client: Any, scene: Scene, tmp_path: Path
) -> None:
    write_folder(tmp_path, scene)
    (tmp_path / "1.png").write_bytes(b"no picture")
    perception = Perception(client)
    source = start_node("source_node", source=str(tmp_path), encoding="raw")
    assert perception.run(source) == 0
    assert len(perception.images) == 2
    assert perception.facts["frames_skipped"] == "1"


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (lambda folder, scene: folder, 2, "holds no images"),
        (lambda folder, scene: folder / "nothing", 2, "does not exist"),
        (lambda folder, scene: write_folder(folder, scene), 1, "nobody reads the images"),
    ],
)
def test_what_cannot_work_ends_with_a_reason(
    start_node: Callable[..., Any], scene: Scene, tmp_path: Path, make: Any, code: int, message: str
) -> None:
    source = start_node(
        "source_node", namespace="/alone", source=str(make(tmp_path, scene)), wait_for_subscriber_s=0.3
    )
    assert source.wait() == code
    assert message in source.output()
    assert "Traceback" not in source.output()


def test_a_source_that_waits_can_be_interrupted(
    start_node: Callable[..., Any], client: Any, scene: Scene, tmp_path: Path
) -> None:
    source = start_node("source_node", source=str(write_folder(tmp_path, scene)), wait_for_consumers=3)
    client.wait(lambda: client.node.count_publishers("image/compressed"), what="the source")
    assert source.stop() == 0


def test_consumers_that_perception_has_found_are_waited_for_until_the_source_finds_them(
    start_node: Callable[..., Any], client: Any, scene: Scene, tmp_path: Path
) -> None:
    perception = Perception(client, other_readers=1)
    source = start_node("source_node", source=str(write_folder(tmp_path, scene)), wait_for_consumers=1)
    client.wait(
        lambda: perception.statuses >= 2 or perception.images, 60, "a source that has heard perception"
    )
    perception.events.append("reader")
    objects = client.collect(PerceivedObjects, "objects", qos.RESULTS)
    assert perception.run(source) == 0
    assert perception.events == ["reader", "image", "image", "image"]
    assert len(objects) == 3
    assert "in sight" not in source.output()


def test_somebody_who_only_looks_is_no_perception_node(
    start_node: Callable[..., Any], client: Any, tmp_path: Path, scene: Scene
) -> None:
    looked_at = client.collect(CompressedImage, "image/compressed", qos.EVERY_IMAGE)
    source = start_node(
        "source_node",
        source=str(write_folder(tmp_path, scene)),
        wait_for_perception=True,
        wait_for_subscriber_s=6.0,  # on a busy machine finding the reader takes seconds
    )
    assert source.wait() == 1
    assert "no perception node is active in /perception after 6 s" in source.output()
    assert not looked_at
