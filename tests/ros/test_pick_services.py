"""The service identify_pick over DDS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from mca_perception_msgs.srv import IdentifyPick, SetContainer
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage
from vision_msgs.msg import BoundingBox2D

from mca_perception.identification import Gallery
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.references import import_references
from tests.support.bundles import write_colour_bundle

pytestmark = pytest.mark.xdist_group("test_pick_services")

Scene = Callable[..., NDArray[np.uint8]]
ACCEPTED = 0.9


@pytest.fixture
def client(lasting_client: Any) -> Any:
    return lasting_client


@pytest.fixture(scope="module")
def node(
    start_node: Callable[..., Any], colour_references: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A node whose model is calibrated: a product below a similarity of 0.9 is unknown."""
    from mca_perception.datasets.armbench import find_references

    folder = tmp_path_factory.mktemp("calibrated")
    calibration = [
        {
            "views": views,
            "gallery": gallery,
            "threshold": ACCEPTED,
            "temperature": 0.05,
            "false_accept": 0.01,
            "confidence": 0.95,
            "calibrated_on": "nothing",
        }
        for views in (1, 3)
        for gallery in ("container", "all")
    ]
    write_colour_bundle(
        folder / "bundle", segmentation={"input_size": (96, 160)}, identification={"calibration": calibration}
    )
    pipeline = PerceptionPipeline.from_bundle(folder / "bundle")
    with Gallery.open(folder / "g.gallery", model=pipeline.bundle.embedding_fingerprint) as gallery:
        import_references(pipeline, gallery, find_references(colour_references))
    return start_node("perception_node", model=str(folder / "bundle"), gallery=str(folder / "g.gallery"))


@pytest.fixture(autouse=True)
def active(node: Any, client: Any) -> None:
    client.perception(lambda facts: facts["state"] == "active", "an active node", timeout=60)


def view(scene: Scene, *colours: str) -> CompressedImage:
    data = cv2.imencode(".png", scene(*colours)[..., ::-1])[1]
    return CompressedImage(format="png", data=data.tobytes())


def box(x: float, y: float, width: float, height: float) -> BoundingBox2D:
    found = BoundingBox2D(size_x=float(width), size_y=float(height))
    found.center.position.x, found.center.position.y = float(x), float(y)
    return found


DISC = box(30, 48, 28, 28)


def products(answer: Any) -> list[str]:
    return [product.product_id for product in answer.products]


@pytest.mark.parametrize("views", [1, 2, 3])
def test_a_pick_is_identified_from_one_to_three_views(client: Any, scene: Scene, views: int) -> None:
    answer = client.call(
        IdentifyPick, "identify_pick", views=[view(scene, "green")] * views, boxes=[DISC] * views, top_k=2
    )
    assert (answer.success, answer.message, answer.is_unknown) == (True, "", False)
    assert products(answer)[0] == "P-green"
    assert len(answer.products) == 2
    assert answer.products[0].score > ACCEPTED > answer.products[1].score
    assert answer.model.startswith("colours@")
    assert answer.processing_ms > 0


def test_the_best_view_counts(client: Any, scene: Scene) -> None:
    pictures = [view(scene, "yellow"), view(scene, "blue"), view(scene, "yellow")]
    answer = client.call(IdentifyPick, "identify_pick", views=pictures, boxes=[DISC] * 3)
    assert products(answer)[0] == "P-blue"


def test_products_are_those_of_the_request_or_else_of_the_container(client: Any, scene: Scene) -> None:
    assert client.call(
        SetContainer, "set_container", container_id="bin", product_ids=["P-red", "P-blue"]
    ).success
    request = {"views": [view(scene, "green")], "boxes": [DISC]}
    assert set(products(client.call(IdentifyPick, "identify_pick", **request))) == {"P-red", "P-blue"}
    answer = client.call(IdentifyPick, "identify_pick", product_ids=["P-green", "P-new"], **request)
    assert products(answer) == ["P-green"]
    assert answer.unknown_products == ["P-new"]
    assert client.call(SetContainer, "set_container").success
    assert len(products(client.call(IdentifyPick, "identify_pick", **request))) == 3


def test_an_unknown_product_is_said_to_be_one_unless_that_is_switched_off(client: Any, scene: Scene) -> None:
    request = {"views": [view(scene, "yellow")], "boxes": [DISC]}
    answer = client.call(IdentifyPick, "identify_pick", **request)
    assert answer.success
    assert answer.is_unknown
    assert answer.products[0].score < ACCEPTED
    for value in (False, True):
        parameter = Parameter("reject_unknown", value=value).to_parameter_msg()
        (result,) = client.call(SetParameters, "perception/set_parameters", parameters=[parameter]).results
        assert result.successful
        assert client.call(IdentifyPick, "identify_pick", **request).is_unknown is value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "0 views; give 1 to 3"),
        ({"views": ["red"] * 4}, "4 views; give 1 to 3"),
        ({"views": ["red", "red"], "boxes": [DISC]}, "1 boxes for 2 views"),
        ({"views": [b"no picture"]}, "view 0: "),
        ({"views": ["red", b"\xff\xd8\xff\xc0 broken"]}, "view 1: "),
        ({"views": ["red"], "boxes": [box(float("nan"), 0, 5, 5)]}, "finite, upright"),
        ({"views": ["red"], "boxes": [box(1000, 1000, 5, 5)]}, "less than a pixel of its 160 x 96 image"),
        ({"views": ["red"], "boxes": [box(30, 48, 0, 10)]}, "less than a pixel"),
        ({"views": ["red"], "top_k": 1000}, "at most 100"),
        ({"views": ["red"], "product_ids": ["x" * 300]}, "300 characters"),
        ({"views": ["red"], "product_ids": [""]}, "empty id"),
    ],
)
def test_garbage_is_answered_with_the_reason(
    node: Any, client: Any, scene: Scene, fields: dict[str, Any], message: str
) -> None:
    fields = {**fields}
    if "views" in fields:
        fields["views"] = [
            CompressedImage(data=v) if isinstance(v, bytes) else view(scene, v) for v in fields["views"]
        ]
    answer = client.call(IdentifyPick, "identify_pick", **fields)
    assert not answer.success
    assert message in answer.message
    assert not answer.products
    assert node.process.poll() is None
