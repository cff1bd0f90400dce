"""Depth and camera_info over DDS: objects in space, and reasons where there are none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from mca_perception_msgs.msg import PerceivedObjects
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray

from mca_perception.errors import CameraError
from mca_perception.pipeline.camera import Camera
from mca_perception.pipeline.camera_files import read_camera, write_camera
from mca_perception.ros.depth_input import camera_of
from mca_perception.ros.images import to_image_message

pytestmark = pytest.mark.xdist_group("test_depth")

Scene = Callable[..., NDArray[np.uint8]]
STAMPS = itertools.count(1)
FOCAL = 120.0
MATRIX = [FOCAL, 0.0, 79.5, 0.0, FOCAL, 47.5, 0.0, 0.0, 1.0]


@pytest.fixture
def client(lasting_client: Any) -> Any:
    return lasting_client


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Any], colour_bundle: Path) -> Any:
    return start_node(
        "perception_node", model=str(colour_bundle), frame_policy="every_frame", depth_patience_ms=1000.0
    )


def info(**changes: Any) -> CameraInfo:
    fields = {"height": 96, "width": 160, "k": MATRIX, "distortion_model": "plumb_bob", "d": [0.0] * 5}
    return CameraInfo(**{**fields, **changes})


class Rig:
    """A depth camera: publishes image, depth and camera_info with one stamp."""

    def __init__(self, client: Any, scene: Scene, namespace: str = "/perception") -> None:
        self.client, self.scene, self.namespace = client, scene, namespace
        self.objects = client.collect(PerceivedObjects, f"{namespace}/objects")
        client.perception(
            lambda facts: facts["state"] == "active" and int(facts["objects_subscribers"]) >= 1,
            "the node",
            60,
            namespace=namespace,
        )

    def connect(self) -> None:
        """Publish until the node has heard depth and camera_info: both come best effort."""
        topics = {Image: f"{self.namespace}/depth", CameraInfo: f"{self.namespace}/camera_info"}
        publishers = {kind: self.client.publisher(kind, topic) for kind, topic in topics.items()}

        def heard(facts: dict[str, str]) -> bool:
            publishers[Image].publish(flat(9.0))
            publishers[CameraInfo].publish(info())
            return facts.get("depth") == facts.get("camera_info") == "yes"

        self.client.perception(heard, "depth and camera_info", namespace=self.namespace)

    def shoot(self, depth: Image | None, camera_info: CameraInfo | None, frame_id: str = "optical") -> Any:
        header = Header(frame_id="optical")
        header.stamp.sec = next(STAMPS)
        if camera_info is not None:
            camera_info.header = header
            self.client.publisher(CameraInfo, f"{self.namespace}/camera_info").publish(camera_info)
        if depth is not None:
            depth.header = Header(stamp=header.stamp, frame_id=frame_id)
            self.client.publisher(Image, f"{self.namespace}/depth").publish(depth)
        picture = to_image_message(self.scene("red", "green"), "rgb8", header)
        self.client.publisher(Image, f"{self.namespace}/image").publish(picture)
        return self.client.wait(lambda: [m for m in self.objects if m.header == header], what="objects")[0]

    def problem(self, text: str) -> None:
        facts = self.client.perception(
            lambda facts: text in facts.get("depth_problem", ""), text, namespace=self.namespace
        )
        assert text in facts["message"]


def flat(metres: float, encoding: str = "16UC1") -> Image:
    depth = np.full((96, 160), metres, np.float32)
    if encoding == "16UC1":
        depth = np.round(depth * 1000).astype(np.uint16)
    return to_image_message(depth, encoding, Header())


def test_without_camera_info_the_reason_is_said_and_objects_come_all_the_same(
    start_node: Callable[..., Any], client: Any, scene: Scene, colour_bundle: Path, tmp_path: Path
) -> None:
    start_node("perception_node", namespace="/blind", model=str(colour_bundle), frame_policy="every_frame")
    rig = Rig(client, scene, "/blind")
    client.perception(
        lambda facts: (
            client.publisher(Image, "/blind/depth").publish(flat(9.0)) or facts.get("depth") == "yes"
        ),
        "depth",
        namespace="/blind",
    )
    found = rig.shoot(flat(1.0), None)
    assert len(found.objects) == 2
    assert not any(item.has_pose_3d for item in found.objects)
    rig.problem("no camera_info")


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_objects_are_measured(node: Any, client: Any, scene: Scene, encoding: str) -> None:
    boxes = client.collect(Detection3DArray, "detections_3d")
    clouds = client.collect(PointCloud2, "object_points")
    rig = Rig(client, scene)  # waits until the node knows these subscribers, too
    rig.connect()
    found = rig.shoot(flat(1.2, encoding), info())
    assert [item.has_pose_3d for item in found.objects] == [True, True]
    header = found.header
    array = client.wait(lambda: [m for m in boxes if m.header == header], what="boxes in space")[0]
    assert [d.id for d in array.detections] == [str(item.mask_id) for item in found.objects]
    for item, detection in zip(found.objects, array.detections, strict=True):
        pose, size = item.bbox_3d.center.position, item.bbox_3d.size
        centre = item.bbox.center.position
        assert pose.z == pytest.approx(1.2, abs=1e-3)
        assert pose.x == pytest.approx((centre.x - 80.0) / FOCAL * 1.2, abs=0.006)
        assert pose.y == pytest.approx((centre.y - 48.0) / FOCAL * 1.2, abs=0.006)
        assert size.x == pytest.approx(item.bbox.size_x / FOCAL * 1.2, rel=0.08)
        assert size.z < 1e-3
        assert detection.bbox == item.bbox_3d
        assert detection.results[0].pose.pose == item.bbox_3d.center
    rig.shoot(flat(1.2, encoding), info())  # by now the cloud's subscriber is known
    cloud = client.wait(lambda: clouds, what="points")[-1]
    rows = np.frombuffer(
        cloud.data, np.dtype([(f.name, "<f4" if f.datatype == 7 else "<u4") for f in cloud.fields])
    )
    assert [f.name for f in cloud.fields] == ["x", "y", "z", "rgb", "id"]
    assert cloud.header.frame_id == "optical"
    by_id = {item.mask_id: item for item in found.objects}
    assert set(rows["id"].tolist()) == set(by_id)
    assert len(rows) == cloud.width == sum(item.area for item in found.objects)
    assert rows["z"] == pytest.approx(1.2, abs=1e-3)
    for identity, item in by_id.items():  # all but the pixels at the edge have the disc's colour
        colours, counts = np.unique(rows["rgb"][rows["id"] == identity], return_counts=True)
        assert int(colours[counts.argmax()]) in (0xFF0000, 0x00FF00)
        assert counts.max() > 0.9 * item.area


@pytest.mark.parametrize(
    ("depth", "camera_info", "frame_id", "text"),
    [
        (flat(1.0), info(), "other", "not aligned"),
        (to_image_message(np.ones((48, 80), np.float32), "32FC1", Header()), info(), "optical", "80 x 48"),
        (flat(1.0), info(height=480, width=640), "optical", "camera_info is 640 x 480"),
        (flat(1.0), info(k=[0.0] * 9), "optical", "no positive focal length"),
        (to_image_message(np.ones((96, 160), np.uint8), "mono8", Header()), info(), "optical", "'mono8'"),
        (flat(1.0), info(distortion_model="magic"), "optical", "'magic' is not supported"),
    ],
)
def test_what_does_not_fit_together_is_said(
    node: Any, client: Any, scene: Scene, depth: Image, camera_info: CameraInfo, frame_id: str, text: str
) -> None:
    rig = Rig(client, scene)
    rig.connect()
    # camera_info may arrive behind the first image, not behind the second.
    rig.shoot(depth, camera_info, frame_id)
    found = rig.shoot(depth, camera_info, frame_id)
    assert len(found.objects) == 2
    assert not any(item.has_pose_3d for item in found.objects)
    rig.problem(text)
    assert node.process.poll() is None


def test_a_file_takes_the_place_of_camera_info(
    start_node: Callable[..., Any], client: Any, scene: Scene, colour_bundle: Path, tmp_path: Path
) -> None:
    write_camera(tmp_path / "cam.yaml", Camera((96, 160), np.array(MATRIX).reshape(3, 3)), "cam")
    start_node(
        "perception_node",
        namespace="/file",
        model=str(colour_bundle),
        frame_policy="every_frame",
        camera_info_file=str(tmp_path / "cam.yaml"),
        depth_patience_ms=1000.0,
    )
    rig = Rig(client, scene, "/file")
    client.perception(
        lambda facts: (
            client.publisher(Image, "/file/depth").publish(flat(9.0)) or facts.get("depth") == "yes"
        ),
        "depth",
        namespace="/file",
    )
    assert all(item.has_pose_3d for item in rig.shoot(flat(0.8), None).objects)
    node = start_node(
        "perception_node",
        namespace="/none",
        model=str(colour_bundle),
        camera_info_file=str(tmp_path / "no.yaml"),
    )
    client.perception(
        lambda facts: "no.yaml" in facts["last_error"], "the missing file", 60, namespace="/none"
    )
    assert node.process.poll() is None


def test_calibrations_survive_their_file(tmp_path: Path) -> None:
    camera = Camera(
        (480, 640), np.array([[500.0, 0, 320.1], [0, 501.0, 239.9], [0, 0, 1]]), np.arange(5) / 100
    )
    write_camera(tmp_path / "deep" / "cam.yaml", camera, "wrist")
    again = read_camera(tmp_path / "deep" / "cam.yaml")
    assert again.image_size == camera.image_size
    np.testing.assert_array_equal(again.matrix, camera.matrix)
    np.testing.assert_array_equal(again.distortion, camera.distortion)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cam.yaml"]


@pytest.mark.parametrize("text", ["", "- 1", "image_width: 3", "a: [", "image_height: x\nimage_width: 1"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cam.yaml").write_text(text)
    with pytest.raises(CameraError, match=r"cam\.yaml"):
        read_camera(tmp_path / "cam.yaml")


def test_messages_become_cameras() -> None:
    camera = camera_of(info(d=[0.1, 0.0, 0.0, 0.0, 0.0]))
    assert camera.image_size == (96, 160)
    assert camera.is_distorted
    assert not camera_of(info(d=[])).is_distorted


def test_synthesised_depth_reaches_the_objects(
    start_node: Callable[..., Any], client: Any, colour_bundle: Path, scene: Scene, tmp_path: Path
) -> None:
    import cv2

    for folder in ("images", "depth", "camera_info"):
        (tmp_path / folder).mkdir()
    for name in ("1", "2", "3"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), scene("red")[..., ::-1])
        cv2.imwrite(str(tmp_path / "depth" / f"{name}.png"), np.full((96, 160), 900, np.uint16))
        write_camera(
            tmp_path / "camera_info" / f"{name}.yaml", Camera((96, 160), np.array(MATRIX).reshape(3, 3)), "s"
        )
    objects = client.collect(PerceivedObjects, "/replay/objects")
    start_node("perception_node", namespace="/replay", model=str(colour_bundle), frame_policy="every_frame")
    source = start_node("source_node", namespace="/replay", source=str(tmp_path), wait_for_consumers=1)
    assert source.wait(120) == 0, source.output()
    client.wait(lambda: len(objects) == 3, what="the objects")
    measured = objects[-1].objects[0]  # the first depth image may come before the subscriptions are connected
    assert measured.has_pose_3d
    assert measured.bbox_3d.center.position.z == pytest.approx(0.9, abs=1e-3)
