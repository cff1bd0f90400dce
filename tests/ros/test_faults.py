"""What goes wrong around a robot: the node stays up, says what it is, and goes on as soon as it can."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from mca_perception_msgs.msg import PerceivedObjects
from mca_perception_msgs.srv import GalleryInfo
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mca_perception.errors import BundleError, InvalidImageError
from mca_perception.identification import Gallery
from mca_perception.ros import qos
from mca_perception.ros.image_headers import RefusedImage
from mca_perception.ros.images import to_image_message
from mca_perception.ros.processing import drop_cause
from tests.support.bundles import write_uneven_bundle
from tests.support.ros_camera import start_camera

pytestmark = pytest.mark.xdist_group("test_faults")

Scene = Callable[..., NDArray[np.uint8]]
STAMPS = itertools.count(1000)


@pytest.fixture
def client(lasting_client: Any) -> Any:
    return lasting_client


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults") / "own.gallery"


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Any], gallery: Path) -> Any:
    """A node with a gallery and a model that can run out of memory."""
    bundle = write_uneven_bundle(gallery.parent / "hungry")
    with Gallery.open(gallery, model=bundle.embedding_fingerprint) as made:
        made.add("P", np.ones((1, 4), np.float32))
    return start_node(
        "perception_node",
        model=str(bundle.path),
        gallery=str(gallery),
        frame_policy="every_frame",
        tracking=True,
        providers=["CPUExecutionProvider"],  # the one that is known to fail in this way
    )


@pytest.fixture
def shoot(node: Any, client: Any) -> Callable[..., Any]:
    """Publishes a picture and waits for its objects: `shoot(picture, stamp)`."""
    objects = client.collect(PerceivedObjects, "objects")
    client.perception(
        lambda facts: facts["state"] == "active" and int(facts["objects_subscribers"]) >= 1, "the node", 60
    )

    def publish(picture: NDArray[np.uint8], stamp: int | None = None, answered: bool = True) -> Any:
        header = Header(frame_id="camera")
        header.stamp.sec = next(STAMPS) if stamp is None else stamp
        objects.clear()
        client.publisher(Image, "image").publish(to_image_message(picture, "rgb8", header))
        return (
            client.wait(lambda: [m for m in objects if m.header == header], what="objects")[0]
            if answered
            else None
        )

    return publish


def test_no_memory_costs_one_frame(node: Any, client: Any, scene: Scene, shoot: Callable[..., Any]) -> None:
    assert len(shoot(scene("red")).objects) == 1
    shoot(np.full((96, 160, 3), 255, np.uint8), answered=False)
    facts = client.perception(lambda facts: "dropped/out_of_memory" in facts, "a frame without memory")
    assert facts["dropped/out_of_memory"] == "1"
    assert len(shoot(scene("red", "green")).objects) == 2
    assert node.process.poll() is None


def test_odd_stamps_are_counted_and_their_frames_processed(
    client: Any, scene: Scene, shoot: Callable[..., Any]
) -> None:
    before = client.perception(lambda facts: True, "the counts")
    later = next(STAMPS)
    shoot(scene("red"), later)
    shoot(scene("red"), 7)
    unstamped = shoot(scene("red"), 0)
    assert np.isnan(unstamped.timing.pipeline_latency_ms)
    shoot(scene("red"), later + 1)
    facts = client.perception(lambda facts: "stamps_zero" in facts, "a stamp of zero")
    assert int(facts["stamps_zero"]) == int(before.get("stamps_zero", 0)) + 1
    assert int(facts["stamps_jumped_back"]) == int(before.get("stamps_jumped_back", 0)) + 1


def test_ids_last_until_the_resolution_changes(scene: Scene, shoot: Callable[..., Any]) -> None:
    first = shoot(scene("red", "green"))
    again = shoot(scene("red", "green"))
    ids = [item.id for item in first.objects]
    assert [item.id for item in again.objects] == ids
    assert [item.mask_id for item in again.objects] == [item.mask_id for item in first.objects]
    large = shoot(np.kron(scene("red", "green"), np.ones((2, 2, 1), np.uint8)))
    assert (large.image_width, large.image_height) == (320, 192)
    assert len(large.objects) == 2
    for small_item, large_item in zip(first.objects, large.objects, strict=True):
        assert large_item.bbox.size_x == pytest.approx(2 * small_item.bbox.size_x, abs=3)
    assert not set(ids) & {item.id for item in large.objects}
    back = shoot(scene("red"))
    assert (back.image_width, len(back.objects)) == (160, 1)


def test_a_camera_that_stops_is_reported_and_may_return(
    client: Any, scene: Scene, shoot: Callable[..., Any]
) -> None:
    shoot(scene("red"))
    client.perception(lambda facts: facts["message"].startswith("no image for"), "a silent camera", 40)
    shoot(scene("red"))
    client.perception(lambda facts: facts["message"].endswith("fps"), "a healthy node", 40)


@pytest.mark.parametrize("reliability", ["RELIABLE", "BEST_EFFORT"])
def test_a_camera_that_is_killed_gives_way_to_the_next(
    node: Any, client: Any, shoot: Callable[..., Any], reliability: str
) -> None:
    objects = client.collect(PerceivedObjects, "objects")
    for name in ("first", "second"):
        camera = start_camera(reliability, "/perception/image", f"{name} {reliability}")
        try:
            client.wait(
                lambda name=name: [m for m in objects if m.header.frame_id == f"{name} {reliability}"],
                60,
                f"objects of the {name} camera",
            )
        finally:
            camera.send_signal(signal.SIGKILL)
            camera.wait(10)
    assert node.process.poll() is None


def test_a_gallery_removed_under_the_node_does_not_stop_it(
    node: Any, client: Any, scene: Scene, shoot: Callable[..., Any], gallery: Path
) -> None:
    gallery.rename(gallery.with_suffix(".gone"))
    assert len(shoot(scene("red")).objects) == 1
    client.call(GalleryInfo, "gallery_info", limit=5)  # an answer either way
    assert node.process.poll() is None


def test_a_publisher_that_cannot_be_read_is_named(
    start_node: Callable[..., Any], client: Any, colour_bundle: Path
) -> None:
    start_node("perception_node", namespace="/strict", model=str(colour_bundle), input_qos="reliable")
    profile = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = client.node.create_publisher(Image, "/strict/image", profile)
    facts = client.perception(
        lambda facts: facts.get("input_problem"), "the mismatch", 60, namespace="/strict"
    )
    assert "/strict/image" in facts["input_problem"]
    assert "reliability" in facts["input_problem"]
    assert "input_qos:=best_effort" in facts["message"]
    client.node.destroy_publisher(publisher)
    client.perception(
        lambda facts: facts["message"] == "no image received yet" and not facts["input_problem"],
        "the mismatch forgotten with its publisher",
        namespace="/strict",
    )


def test_what_was_published_once_for_late_subscribers_is_read(
    start_node: Callable[..., Any], client: Any, scene: Scene, colour_bundle: Path
) -> None:
    place = "/late"
    publishers = {
        kind: client.node.create_publisher(kind, f"{place}/{topic}", qos.LATCHED)
        for kind, topic in ((Image, "image"), (CameraInfo, "camera_info"))
    }
    publishers[Image].publish(to_image_message(scene("red"), "rgb8", Header(frame_id="camera")))
    publishers[CameraInfo].publish(CameraInfo(height=96, width=160, k=[1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0]))
    node = start_node("perception_node", namespace=place, model=str(colour_bundle))
    client.perception(
        lambda facts: facts.get("frames_processed") == "1" and facts.get("camera_info") == "yes",
        "the image and its camera_info",
        60,
        namespace=place,
    )
    for publisher in publishers.values():
        client.node.destroy_publisher(publisher)
    camera = client.publisher(Image, f"{place}/image")  # not latched: followed, too
    objects = client.collect(PerceivedObjects, f"{place}/objects")
    client.perception(lambda facts: facts["objects_subscribers"] == "1", "the listener", namespace=place)
    header = Header(frame_id="another camera")
    header.stamp.sec = next(STAMPS)
    camera.publish(to_image_message(scene("red", "green"), "rgb8", header))
    client.wait(lambda: [m for m in objects if m.header == header], what="objects of the other camera")
    client.node.destroy_publisher(camera)
    returned = client.node.create_publisher(Image, f"{place}/image", qos.LATCHED)
    header.stamp.sec = next(STAMPS)
    returned.publish(to_image_message(scene("red"), "rgb8", header))  # perhaps before the node knows it
    facts = client.perception(
        lambda facts: int(facts["frames_processed"]) >= 3 and float(facts["silent_s"]) > 2.5,
        "its image, and time enough for another look at its publisher",
        namespace=place,
    )
    assert facts["frames_received"] == "3"

    camera = client.node.create_publisher(Image, f"{place}/image", qos.IMAGE_OUTPUT)
    for _ in range(2):  # the first of these statuses changes the subscription, which the publishers then find
        client.perception(lambda facts: facts["image_publishers"] == "2", "both cameras", namespace=place)
    header.stamp.sec = next(STAMPS)
    returned.publish(to_image_message(scene("red"), "rgb8", header))
    client.wait(lambda: [m for m in objects if m.header == header], what="objects of an image heard live")
    client.node.destroy_publisher(camera)
    facts = client.perception(
        lambda facts: facts["image_publishers"] == "1" and float(facts["silent_s"]) > 2.5,
        "time enough for another look at the publisher that is left",
        namespace=place,
    )
    assert facts["frames_received"] == "4"  # what was heard live is not read again
    assert node.stop() == 0, node.output()


def test_more_objects_than_a_mask_can_number_are_refused(
    start_node: Callable[..., Any], client: Any, colour_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(colour_bundle, tmp_path / "many")
    manifest = json.loads((tmp_path / "many" / "manifest.json").read_text())
    manifest["segmentation"]["max_objects"] = 65_536
    (tmp_path / "many" / "manifest.json").write_text(json.dumps(manifest))
    start_node("perception_node", namespace="/many", model=str(tmp_path / "many"))
    facts = client.perception(lambda facts: facts["last_error"] != "", "an error", 60, namespace="/many")
    assert "max_objects" in facts["last_error"]


def test_a_full_disk_under_the_log_folder_does_not_stop_the_node(
    client: Any, scene: Scene, colour_bundle: Path, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    namespace = ["unshare", "--mount", "--map-root-user"]
    mount = f"mount -t tmpfs -o size=4k none {logs} && ! head -c 8192 /dev/zero > {logs}/rest"
    if subprocess.run([*namespace, "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount a small file system")
    command = f"({mount}) 2>/dev/null; exec {sys.executable} -m mca_perception.ros.perception_node --ros-args"
    arguments = f"-r __ns:=/full -p model:={colour_bundle} -p frame_policy:=every_frame"
    process = subprocess.Popen(
        [*namespace, "sh", "-c", f"{command} {arguments}"], env={**os.environ, "ROS_LOG_DIR": str(logs)}
    )
    try:
        objects = client.collect(PerceivedObjects, "/full/objects")
        client.perception(
            lambda facts: facts["state"] == "active" and int(facts["objects_subscribers"]) >= 1,
            "the node",
            60,
            namespace="/full",
        )
        client.publisher(Image, "/full/image").publish(to_image_message(scene("red"), "rgb8", Header()))
        client.wait(lambda: objects, what="objects")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 9"), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
        (RuntimeError("std::bad_alloc"), "out_of_memory"),
        (RuntimeError("something else"), "processing_failed"),
        (BundleError("no graph"), "processing_failed"),
        (RefusedImage("truncated", "too short"), "truncated"),
        (InvalidImageError("odd"), "invalid_image"),
    ],
)
def test_errors_are_counted_by_cause(error: Exception, cause: str) -> None:
    assert drop_cause(error) == cause
