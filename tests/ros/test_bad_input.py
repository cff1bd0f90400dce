"""Whatever comes in: the node stays up, says what was wrong, and processes the next good frame."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from mca_perception_msgs.msg import PerceivedObjects
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from mca_perception.ros import qos
from mca_perception.ros.images import to_compressed_message, to_image_message, wrap_encoded

pytestmark = pytest.mark.xdist_group("test_bad_input")

Scene = Callable[..., NDArray[np.uint8]]
STAMPS = itertools.count(100, 10)
DROPPED: Counter[str] = Counter()


class Camera:
    """A perception node, its objects, and publishers for both of its inputs."""

    def __init__(self, client: Any, node: Any) -> None:
        self.client, self.node = client, node
        self.objects = client.collect(PerceivedObjects, "objects")
        client.heard()
        self._publishers = {
            Image: client.publisher(Image, "image"),
            CompressedImage: client.publisher(CompressedImage, "image/compressed"),
        }

    def publish(self, message: Any, stamp: int) -> None:
        message.header = header(stamp)
        self._publishers[type(message)].publish(message)


@pytest.fixture(scope="module")
def camera(start_node: Callable[..., Any], lasting_client: Any, colour_bundle: Path) -> Camera:
    node = start_node("perception_node", model=str(colour_bundle), frame_policy="every_frame")
    return Camera(lasting_client, node)


def header(seconds: int) -> Header:
    return Header(stamp=Time(sec=seconds), frame_id="tote_camera")


def raw(scene: Scene, **changes: Any) -> Image:
    message = to_image_message(scene("red"), "rgb8", header(1))
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def jpeg(scene: Scene, change: Callable[[bytes], bytes]) -> CompressedImage:
    data = bytes(to_compressed_message(scene("red"), header(1)).data)
    return wrap_encoded(change(data), header(1), "jpeg")


def with_size(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 4 :]


@pytest.mark.parametrize(
    ("make", "cause", "reason"),
    [
        (lambda scene: raw(scene, encoding="nv12_planar"), "unsupported_encoding", "nv12_planar"),
        (lambda scene: raw(scene, width=0, height=0, data=b""), "empty", "0 x 0"),
        (lambda scene: raw(scene, data=bytes(1000)), "truncated", "1000 bytes"),
        (lambda scene: raw(scene, step=160), "inconsistent_step", "step is 160"),
        (lambda scene: raw(scene, width=10_000, height=10_000, step=30_000), "too_large", "100 megapixels"),
        (lambda scene: jpeg(scene, lambda data: b""), "empty", "neither JPEG nor PNG"),
        (lambda scene: jpeg(scene, lambda data: b"no picture"), "undecodable", "neither JPEG nor PNG"),
        (lambda scene: jpeg(scene, lambda data: data[:4] + bytes(500)), "undecodable", "states no size"),
        (lambda scene: jpeg(scene, lambda data: data[: len(data) // 2]), "truncated", "cut off"),
        (
            lambda scene: jpeg(scene, lambda data: with_size(data, 10_000, 10_000)),
            "too_large",
            "100 megapixels",
        ),
    ],
)
def test_a_bad_frame_is_counted_and_the_next_one_processed(
    camera: Camera, scene: Scene, make: Callable[[Scene], Any], cause: str, reason: str
) -> None:
    stamp = next(STAMPS)  # never one that came on the other input: that would be a duplicate
    camera.objects.clear()
    bad = make(scene)
    camera.publish(bad, stamp)
    camera.publish(
        raw(scene) if isinstance(bad, Image) else to_compressed_message(scene("red"), header(1)), stamp + 1
    )
    camera.client.wait(lambda: camera.objects, what="the good frame")
    assert [message.header for message in camera.objects] == [header(stamp + 1)]
    assert len(camera.objects[0].objects) == 1
    facts = camera.client.perception(lambda facts: reason in facts["last_error"], f"the reason: {reason}")
    DROPPED[cause] += 1
    assert int(facts[f"dropped/{cause}"]) == DROPPED[cause]
    assert int(facts["frames_dropped"]) == sum(DROPPED.values())
    assert reason in facts["message"]
    assert camera.node.process.poll() is None


def spoil(bundle: Path, target: Path, how: str) -> Path:
    """A copy of a bundle with something wrong."""
    if how == "missing":
        return target
    shutil.copytree(bundle, target)
    manifest = target / "manifest.json"
    if how == "tampered":
        graph = target / "segmentation.onnx"
        data = bytearray(graph.read_bytes())
        data[len(data) // 2] ^= 1
        graph.write_bytes(bytes(data))
    elif how == "other version":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 99}))
    elif how == "incomplete":
        (target / "backbone.onnx").unlink()
    return target


def test_a_bad_bundle_leaves_the_node_unconfigured_until_a_good_one_comes(
    start_node: Callable[..., Any], client: Any, colour_bundle: Path, scene: Scene, tmp_path: Path
) -> None:
    node = start_node(
        "perception_node", namespace="/bundles", model=str(tmp_path / "missing"), frame_policy="every_frame"
    )

    def configure() -> bool:
        transition = Transition(id=Transition.TRANSITION_CONFIGURE)
        return bool(
            client.call(ChangeState, "/bundles/perception/change_state", transition=transition).success
        )

    def use(model: Path) -> None:
        parameter = Parameter("model", value=str(model)).to_parameter_msg()
        (result,) = client.call(
            SetParameters, "/bundles/perception/set_parameters", parameters=[parameter]
        ).results
        assert result.successful

    for how, reason in [
        ("missing", "is not a folder"),
        ("tampered", "was altered"),
        ("other version", "schema_version 99"),
        ("incomplete", "missing"),
    ]:
        use(spoil(colour_bundle, tmp_path / how.replace(" ", "-"), how))
        assert not configure()
        facts = client.perception(
            lambda facts, reason=reason: reason in facts["last_error"], reason, namespace="/bundles"
        )
        assert facts["state"] == "unconfigured"
        assert facts["message"].startswith("not configured")
        state = client.call(GetState, "/bundles/perception/get_state").current_state
        assert state.label == "unconfigured"
        assert reason in node.output()
    use(colour_bundle)
    assert configure()
    activate = Transition(id=Transition.TRANSITION_ACTIVATE)
    assert client.call(ChangeState, "/bundles/perception/change_state", transition=activate).success
    objects = client.collect(PerceivedObjects, "/bundles/objects")
    publisher = client.node.create_publisher(Image, "/bundles/image", qos.IMAGE_OUTPUT)
    client.perception(lambda facts: facts.get("objects_subscribers") == "1", "us", namespace="/bundles")
    client.wait(publisher.get_subscription_count, what="the node")
    publisher.publish(raw(scene))
    client.wait(lambda: objects, what="objects")
    assert node.process.poll() is None


@pytest.mark.parametrize(
    ("gallery", "reason"), [("none.gallery", "does not exist"), ("", "is not a database")]
)
def test_a_gallery_that_cannot_be_used_is_named(
    start_node: Callable[..., Any],
    client: Any,
    colour_bundle: Path,
    tmp_path: Path,
    gallery: str,
    reason: str,
) -> None:
    path = tmp_path / (gallery or "text.gallery")
    if not gallery:
        path.write_text("this is no database, but a text that is long enough to be mistaken for one")
    namespace = "/no_gallery" if gallery else "/text_gallery"
    node = start_node("perception_node", namespace=namespace, model=str(colour_bundle), gallery=str(path))
    facts = client.perception(lambda facts: facts["last_error"] != "", "an error", namespace=namespace)
    assert reason in facts["last_error"]
    assert str(path) in facts["last_error"]
    assert node.process.poll() is None
