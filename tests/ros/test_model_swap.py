"""The service load_model over DDS: another model takes over, or the old one goes on untouched."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from mca_perception_msgs.msg import PerceivedObjects
from mca_perception_msgs.srv import LoadModel, SetContainer
from rcl_interfaces.srv import GetParameters
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import LabelInfo

from mca_perception.objects import Objects
from mca_perception.ros import qos
from mca_perception.ros.images import to_image_message
from mca_perception.ros.model_swap import compare
from tests.support.bundles import bundle_files, manifest_fields

pytestmark = pytest.mark.xdist_group("test_model_swap")

Scene = Callable[..., NDArray[np.uint8]]
STAMPS = itertools.count(1)


@pytest.fixture
def client(lasting_client: Any) -> Any:
    return lasting_client


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Any], colour_bundle: Path, colour_gallery: Path) -> Any:
    return start_node(
        "perception_node", model=str(colour_bundle), gallery=str(colour_gallery), frame_policy="every_frame"
    )


@pytest.fixture(autouse=True)
def active(request: pytest.FixtureRequest, client: Any) -> None:
    if "node" in request.fixturenames:
        client.perception(lambda facts: facts["state"] == "active", "an active node", timeout=60)


def bundle(folder: Path, how: str, good: Path) -> Path:
    """A bundle to load, or something that cannot be loaded."""
    from mca_perception.deploy.bundle import write_bundle

    if how == "missing":
        return folder / "missing"
    if how == "altered":
        shutil.copytree(good, folder / "altered")
        graph = folder / "altered" / "segmentation.onnx"
        data = bytearray(graph.read_bytes())
        data[len(data) // 2] ^= 1
        graph.write_bytes(bytes(data))
        return folder / "altered"
    fields, files = manifest_fields((96, 160)), bundle_files()
    fields["name"] = how
    if how == "strict":
        fields["segmentation"]["score_threshold"] = 0.92
    elif how == "other-embeddings":
        fields["identification"]["margin"] = 0.4
    else:
        files["segmentation.onnx"] = fixed_size_segmentation()
    return write_bundle(folder / how, fields, files).path


def fixed_size_segmentation() -> bytes:
    """A graph with the right names that wants another number of tokens."""
    import onnx

    text = """
<ir_version: 9, opset_import: ["" : 17]>
segmentation (float[N, L, 3] features, float[N, 3, H, W] images)
    => (float[N, 6] scores, int64[N, 6] labels, float[N, 6, h, w] mask_logits) {
  shape = Constant <value = int64[3] {1, 7, 6}> ()
  wrong = Reshape (features, shape)
  scores = ReduceMax <axes = [1], keepdims = 0> (wrong)
  labels = Cast <to = 7> (scores)
  two = Constant <value = int64[2] {2, 3}> ()
  mask_logits = Unsqueeze (scores, two)
}
"""
    return bytes(onnx.parser.parse_model(text).SerializeToString())


def perceive(client: Any, objects: list[Any], picture: NDArray[np.uint8]) -> Any:
    header = Header(frame_id="camera")
    header.stamp.sec = next(STAMPS)
    client.publisher(Image, "image").publish(to_image_message(picture, "rgb8", header))
    return client.wait(lambda: [m for m in objects if m.header == header], what="objects")[0]


def parameter(client: Any, name: str) -> str:
    (value,) = client.call(GetParameters, "perception/get_parameters", names=[name]).values
    return str(value.string_value)


def test_another_model_takes_over_between_two_frames(
    node: Any, client: Any, scene: Scene, colour_bundle: Path, tmp_path: Path
) -> None:
    objects = client.collect(PerceivedObjects, "objects")
    labels = client.collect(LabelInfo, "label_info", qos.LATCHED)
    client.heard()
    assert client.call(SetContainer, "set_container", container_id="bin", product_ids=["P-red"]).success
    before = perceive(client, objects, scene("red", "green"))
    assert len(before.objects) == 2
    other = bundle(tmp_path, "strict", colour_bundle)
    answer = client.call(LoadModel, "load_model", path=str(other))
    assert answer.success, answer.message
    assert answer.previous_model == before.model
    assert answer.model != before.model
    assert "1 objects against 2, 1 of them the same" in answer.message
    assert answer.load_ms > 0
    assert answer.warm_up_ms > 0
    after = perceive(client, objects, scene("red", "green"))
    assert after.model == answer.model
    assert len(after.objects) == 1  # green lies below the new model's threshold
    assert after.container_id == "bin"
    assert [p.product_id for p in after.objects[0].products] == ["P-red"]
    client.wait(lambda: labels and labels[-1].threshold == pytest.approx(0.92), what="the new labels")
    client.perception(lambda facts: facts["model"] == answer.model, "the new model")
    assert parameter(client, "model") == str(other)
    back = client.call(LoadModel, "load_model", path=str(colour_bundle))
    assert (back.success, back.model, back.previous_model) == (True, before.model, answer.model)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "is not a folder"),
        ("altered", "was altered"),
        ("other-embeddings", "mca gallery"),
        ("unable", "fails on a frame|cannot run"),  # OpenVINO notices earlier
    ],
)
def test_a_model_that_cannot_take_over_leaves_the_old_one_at_work(
    node: Any, client: Any, scene: Scene, colour_bundle: Path, tmp_path: Path, how: str, message: str
) -> None:
    objects = client.collect(PerceivedObjects, "objects")
    client.heard()
    before = perceive(client, objects, scene("red"))
    path = parameter(client, "model")
    answer = client.call(LoadModel, "load_model", path=str(bundle(tmp_path, how, colour_bundle)))
    assert not answer.success
    assert re.search(message, answer.message)
    assert answer.model == answer.previous_model == before.model
    assert perceive(client, objects, scene("red")).model == before.model
    assert parameter(client, "model") == path
    assert node.process.poll() is None


def test_an_empty_path_is_refused(node: Any, client: Any) -> None:
    answer = client.call(LoadModel, "load_model")
    assert not answer.success
    assert "path is empty" in answer.message


def objects_at(*boxes: list[float], **fields: Any) -> Objects:
    return Objects(
        image_size=(100, 100),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.full(len(boxes), 0.5, np.float32),
        labels=np.zeros(len(boxes), np.int64),
        label_names=("Object",),
        timings_ms={"total": 10.0 * len(boxes)},
        **fields,
    )


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ([], [], "0 objects against 0, 0 of them the same"),
        ([[0, 0, 10, 10]], [[1, 0, 10, 10], [50, 50, 60, 60]], "2 objects against 1, 1 of them the same"),
        ([[0, 0, 10, 10]], [[50, 50, 60, 60]], "1 objects against 1, 0 of them the same"),
    ],
)
def test_two_models_are_compared_in_a_line(before: Any, after: Any, text: str) -> None:
    assert text in compare(objects_at(*before), objects_at(*after))


def known_as(*products: str, conditions: list[list[float]]) -> dict[str, Any]:
    """Fields of objects that are one product each, or none, and in a condition."""
    return {
        "product_ids": [(product,) if product else () for product in products],
        "product_scores": np.array([[0.5 if product else np.nan] for product in products], np.float32),
        "defects": np.array(conditions, np.float32),
    }


def test_what_two_models_say_of_the_same_objects_is_compared() -> None:
    here, there, gone = [0.0, 0, 10, 10], [50.0, 50, 60, 60], [80.0, 80, 90, 90]
    fine, opened = [0.8, 0.1, 0.1], [0.1, 0.2, 0.7]
    before = objects_at(here, there, gone, **known_as("A", "", "C", conditions=[fine, fine, opened]))
    after = objects_at(there, here, **known_as("", "B", conditions=[opened, fine]))
    line = compare(before, after)
    assert "2 objects against 3, 2 of them the same (boxes overlap by 0.5)" in line
    assert ", 1 with the same product, 1 in the same condition;" in line
    assert compare(objects_at(here), after).count(",") == 1  # the first model knew neither
