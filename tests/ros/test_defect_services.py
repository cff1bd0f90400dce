"""Defects over DDS: fields of objects, alarms with heat maps, the rate set live, and the service inspect_pick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from mca_perception_msgs.msg import DefectAssessment, PerceivedObjects
from mca_perception_msgs.srv import InspectPick
from numpy.typing import NDArray
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import BoundingBox2D

from mca_perception.ros import qos
from mca_perception.ros.images import to_image_message
from tests.support.bundles import OPERATING_POINTS, write_inspecting_bundle

pytestmark = pytest.mark.xdist_group("test_defect_services")

Scene = Callable[..., NDArray[np.uint8]]
STRICT, LOOSE = OPERATING_POINTS[0.01], OPERATING_POINTS[0.05]


@pytest.fixture
def client(lasting_client: Any) -> Any:
    return lasting_client


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("bundle") / "inspecting"
    write_inspecting_bundle(folder)
    return start_node("perception_node", model=str(folder), frame_policy="every_frame", inspection=True)


@pytest.fixture(autouse=True)
def active(request: pytest.FixtureRequest, client: Any) -> None:
    if "node" in request.fixturenames:
        client.perception(lambda facts: facts["state"] == "active", "an active node", timeout=60)


def picture(scene: NDArray[np.uint8]) -> CompressedImage:
    return CompressedImage(format="png", data=cv2.imencode(".png", scene[..., ::-1])[1].tobytes())


def set_parameter(client: Any, name: str, value: ParameterValue) -> Any:
    parameters = [Parameter(name=name, value=value)]
    return client.call(SetParameters, "perception/set_parameters", parameters=parameters).results[0]


def set_rate(client: Any, rate: float) -> Any:
    value = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=rate)
    return set_parameter(client, "defect_fpr", value)


def set_inspection(client: Any, on: bool) -> Any:
    return set_parameter(
        client, "inspection", ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=on)
    )


def objects_of(client: Any, image: NDArray[np.uint8], stamp: int) -> PerceivedObjects:
    objects = client.collect(PerceivedObjects, "objects")
    publisher = client.publisher(Image, "image")
    client.heard()
    header = Header(frame_id="camera")
    header.stamp.sec = stamp
    publisher.publish(to_image_message(image, "rgb8", header))
    return client.wait(lambda: [m for m in objects if m.header == header], what="objects")[0]


def test_objects_say_whether_they_are_defective(node: Any, client: Any, scene: Scene) -> None:
    alarms = client.collect(PerceivedObjects, "alarms", qos.RESULTS)
    pictures = client.collect(CompressedImage, "alarms/heat_map/compressed", qos.IMAGE_OUTPUT)
    client.wait(lambda: client.node.count_publishers("/perception/alarms"), what="alarms")
    image = scene("red", "green", "blue")
    message = objects_of(client, image, 1)
    found = [entry.defect for entry in message.objects]  # best score first: red, green, blue
    assert [defect.decision for defect in found] == [
        DefectAssessment.MULTI_PICK,
        DefectAssessment.NOMINAL,
        DefectAssessment.PACKAGE_DEFECT,
    ]
    assert [int(np.argmax(defect.probabilities)) for defect in found] == [1, 0, 2]
    assert all(defect.threshold == pytest.approx(STRICT) for defect in found)
    alarm = client.wait(lambda: [m for m in alarms if m.header == message.header], what="the alarm")[0]
    assert [entry.id for entry in alarm.objects] == [message.objects[0].id, message.objects[2].id]
    drawn = client.wait(lambda: [m for m in pictures if m.header == message.header], what="a heat map")[0]
    shown = cv2.imdecode(np.frombuffer(drawn.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert shown.shape == image.shape
    change = np.abs(shown.astype(int) - image).sum(axis=2)
    assert change[40:56, 22:38].mean() > 3 * change[40:56, 72:88].mean()  # red is explained, green is not


def test_nothing_wrong_gives_no_alarm(node: Any, client: Any, scene: Scene) -> None:
    alarms = client.collect(PerceivedObjects, "alarms", qos.RESULTS)
    message = objects_of(client, scene("green"), 2)
    assert message.objects[0].defect.decision == DefectAssessment.NOMINAL
    after = objects_of(client, scene("red"), 3)
    client.wait(lambda: [m for m in alarms if m.header == after.header], what="the next alarm")
    assert message.header not in [alarm.header for alarm in alarms]


def test_objects_are_judged_only_while_that_is_asked_for(node: Any, client: Any, scene: Scene) -> None:
    try:
        assert set_inspection(client, False).successful
        message = objects_of(client, scene("red"), 4)
        assert message.objects[0].defect.decision == DefectAssessment.NOT_ASSESSED
        answer = client.call(InspectPick, "inspect_pick", views=[picture(scene("red"))])
        assert answer.success, answer.message
    finally:
        assert set_inspection(client, True).successful
    message = objects_of(client, scene("red"), 5)
    assert message.objects[0].defect.decision == DefectAssessment.MULTI_PICK


def test_the_operating_point_is_set_live_within_calibrated_bounds(
    node: Any, client: Any, scene: Scene
) -> None:
    for number, (rate, threshold) in enumerate(
        [(0.05, LOOSE), (0.03, STRICT), (0.01, STRICT), (0.0, STRICT)]
    ):
        assert set_rate(client, rate).successful
        entry = objects_of(client, scene("red"), 10 + number).objects[0]
        assert entry.defect.threshold == pytest.approx(threshold)
    for rate in (0.2, 0.001):
        result = set_rate(client, rate)
        assert not result.successful
        assert "calibrated for 0.01 to 0.05" in result.reason


def test_a_pick_is_judged_from_all_its_views(node: Any, client: Any, scene: Scene) -> None:
    box = BoundingBox2D(size_x=44.0, size_y=44.0)
    box.center.position.x, box.center.position.y = 30.0, 48.0
    views = [picture(scene(colour)) for colour in ("green", "red")]
    answer = client.call(InspectPick, "inspect_pick", views=views, boxes=[box, box])
    assert (answer.success, answer.message) == (True, "")
    assert answer.assessment.decision == DefectAssessment.ABSTAIN  # the views contradict each other
    assert [view.decision for view in answer.view_assessments] == [
        DefectAssessment.NOMINAL,
        DefectAssessment.MULTI_PICK,
    ]
    assert answer.model.startswith("colours@")
    assert answer.processing_ms > 0
    for view, decision in zip(views, (DefectAssessment.NOMINAL, DefectAssessment.MULTI_PICK), strict=True):
        both = client.call(InspectPick, "inspect_pick", views=[view] * 2, boxes=[box] * 2)
        assert both.assessment.decision == decision
    clip = client.call(InspectPick, "inspect_pick", views=[views[0]] * 39 + [views[1]], is_clip=True)
    assert clip.success
    assert len(clip.view_assessments) == 16


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "comes with 0 views; give 1 to 16"),
        ({"views": ["good"] * 17}, "comes with 17 views; give 1 to 16"),
        ({"views": ["good", "bad"]}, "view 1: compressed image of 8 bytes is neither"),
        ({"views": ["good"], "boxes": [BoundingBox2D()] * 2}, "2 boxes for 1 views"),
        ({"views": ["good"], "boxes": [BoundingBox2D()]}, "less than a pixel"),
    ],
)
def test_bad_requests_are_named(
    node: Any, client: Any, scene: Scene, request_: dict[str, Any], message: str
) -> None:
    images = {"good": picture(scene("red")), "bad": CompressedImage(data=b"no image")}
    fields = {**request_, "views": [images[name] for name in request_.get("views", [])]}
    answer = client.call(InspectPick, "inspect_pick", **fields)
    assert not answer.success
    assert message in answer.message


def test_a_model_without_a_defect_head_says_so(
    start_node: Callable[..., Any], client: Any, colour_bundle: Path, scene: Scene
) -> None:
    start_node("perception_node", namespace="/plain", model=str(colour_bundle))
    client.perception(lambda facts: facts["state"] == "active", "a node", timeout=60, namespace="/plain")
    answer = client.call(InspectPick, "/plain/inspect_pick", views=[picture(scene("red"))])
    assert not answer.success
    assert "has no defect head" in answer.message
