"""Nodes that look closer at the objects of another one; the tests play the segmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from mca_perception_msgs.msg import PerceivedObjects
from mca_perception_msgs.srv import AddProduct, SetContainer
from rclpy.duration import Duration
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from mca_perception.errors import InvalidImageError
from mca_perception.identification import Gallery
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.ros import qos
from mca_perception.ros.conversions import FrameInfo, products_of, to_instance_mask, to_perceived_objects
from mca_perception.ros.images import to_image_message
from mca_perception.ros.object_node import objects_of
from tests.support.messages import products, stamped

pytestmark = pytest.mark.xdist_group("test_object_node")

Scene = Callable[..., NDArray[np.uint8]]


def perceived(bundle: Path, image: NDArray[np.uint8], gallery: Path | None = None) -> Any:
    """What the pipeline says, as the message and the mask that the perception node would publish."""
    pipeline = PerceptionPipeline.from_bundle(bundle)
    if gallery is not None:
        pipeline.gallery = Gallery.open(gallery, model=pipeline.bundle.embedding_fingerprint, create=False)
    objects = pipeline.perceive(image)
    frame = FrameInfo(stamped(1), "", "", 0)
    return objects, to_perceived_objects(objects, frame, PerceivedObjects().timing)


def test_objects_survive_the_way_through_their_messages(colour_bundle: Path, scene: Scene) -> None:
    objects, message = perceived(colour_bundle, scene("red", "green", "blue"))
    back = objects_of(message, to_instance_mask(objects, stamped(1)))
    np.testing.assert_array_equal(back.boxes, objects.boxes)
    np.testing.assert_array_equal(back.scores, objects.scores)
    np.testing.assert_array_equal(back.instance_mask, objects.instance_mask)
    np.testing.assert_array_equal(back.instance_ids, objects.instance_ids)
    names = [[found.label_names[label] for label in found.labels] for found in (back, objects)]
    assert names[0] == names[1]
    assert (back.product_ids, back.track_ids.tolist()) == (None, objects.instance_ids.tolist())


def test_products_and_lasting_ids_come_along(colour_bundle: Path, colour_gallery: Path, scene: Scene) -> None:
    objects, message = perceived(colour_bundle, scene("red", "green", "blue"), colour_gallery)
    message.objects[1].products = message.objects[1].products[:1]
    message.objects[2].products = []
    message.objects[0].id = 77
    back = objects_of(message, to_instance_mask(objects, stamped(1)))
    assert [products_of(back, i) for i in range(3)] == [
        [(entry.product_id, pytest.approx(entry.score)) for entry in item.products]
        for item in message.objects
    ]
    assert len(products_of(back, 0)) > 1
    assert back.track_ids is not None
    assert back.track_ids.tolist() == [77, 2, 3]


def test_masks_of_big_endian_machines_and_with_padded_rows(colour_bundle: Path, scene: Scene) -> None:
    objects, message = perceived(colour_bundle, scene("red", "green"))
    mask = to_instance_mask(objects, stamped(1))
    assert objects.instance_mask is not None
    rows = np.pad(objects.instance_mask, ((0, 0), (0, 3))).astype(">u2")
    mask.is_bigendian, mask.step, mask.data = 1, rows.shape[1] * 2, rows.tobytes()
    np.testing.assert_array_equal(objects_of(message, mask).instance_mask, objects.instance_mask)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"encoding": "mono8"}, "mono8"),
        ({"width": 10}, "need mono16 160 x 96"),
        ({"data": b"\0" * 10}, "has 10 bytes"),
        ({"step": 5}, "rows of 5 bytes"),
    ],
)
def test_masks_that_cannot_be_used(
    colour_bundle: Path, scene: Scene, change: dict[str, Any], reason: str
) -> None:
    objects, message = perceived(colour_bundle, scene("red"))
    mask = to_instance_mask(objects, stamped(1))
    for name, value in change.items():
        setattr(mask, name, value)
    with pytest.raises(InvalidImageError, match=reason):
        objects_of(message, mask)


def test_two_objects_with_one_id_are_refused(colour_bundle: Path, scene: Scene) -> None:
    objects, message = perceived(colour_bundle, scene("red", "green"))
    message.objects[1].mask_id = message.objects[0].mask_id
    with pytest.raises(InvalidImageError, match="not unique"):
        objects_of(message, to_instance_mask(objects, stamped(1)))


@pytest.fixture(scope="module")
def lone(
    start_node: Callable[..., Any], colour_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """An identification node with an empty gallery, whose segmentation the test plays."""
    gallery = tmp_path_factory.mktemp("gallery") / "empty.gallery"
    model = PerceptionPipeline.from_bundle(colour_bundle).bundle.embedding_fingerprint
    Gallery.open(gallery, model=model).close()
    return start_node(
        "identification_node",
        namespace="/lone",
        model=str(colour_bundle),
        gallery=str(gallery),
        frame_policy="every_frame",
    )


def segmented(client: Any, bundle: Path, image: NDArray[np.uint8], stamp: int) -> Callable[[], None]:
    """Publishes what segmentation would, once all is connected."""
    objects, message = perceived(bundle, image)
    message.header = stamped(stamp)
    message.container_id = "of the segmentation"
    masks = client.publisher(Image, "/lone/segmented/instance_mask")
    results = client.publisher(PerceivedObjects, "/lone/segmented/objects")

    def publish() -> None:
        masks.publish(to_instance_mask(objects, stamped(stamp)))
        results.publish(message)

    return publish


def test_an_empty_gallery_can_be_filled_and_a_container_counts_from_the_next_image_on(
    lone: Any, lasting_client: Any, scene: Scene, colour_bundle: Path, colour_references: Path
) -> None:
    client = lasting_client
    photo = (colour_references / "P-red" / "1.png").read_bytes()
    added = client.call(
        AddProduct,
        "/lone/add_product",
        product_id="P-red",
        references=[CompressedImage(format="png", data=photo)],
    )
    assert added.success, added.message
    results = client.collect(PerceivedObjects, "/lone/objects", qos.RESULTS)
    client.perception(
        lambda facts: facts["objects_subscribers"] == "1", "our subscription", namespace="/lone"
    )
    images = client.publisher(CompressedImage, "/lone/image/compressed")
    data = cv2.imencode(".png", scene("red")[..., ::-1])[1].tobytes()
    for stamp, container in ((1, "A"), (2, "B")):
        images.publish(CompressedImage(header=stamped(stamp), format="png", data=data))
        assert images.wait_for_all_acked(Duration(seconds=10))
        assert client.call(SetContainer, "/lone/set_container", container_id=container).success
    for stamp in (1, 2):  # both are segmented only now
        segmented(client, colour_bundle, scene("red"), stamp)()
    client.wait(lambda: len(results) == 2, what="objects of both images")
    assert [message.container_id for message in results] == ["of the segmentation", "A"]
    assert all(entry == [("P-red", entry[0][1])] for message in results for entry in products(message))


def test_a_best_effort_camera_is_read_and_objects_without_an_image_are_told(
    lone: Any, lasting_client: Any, scene: Scene, colour_bundle: Path
) -> None:
    client = lasting_client
    results = client.collect(PerceivedObjects, "/lone/objects", qos.RESULTS)
    best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    images = client.node.create_publisher(Image, "/lone/image", best_effort)
    client.wait(images.get_subscription_count, what="a reader of the best-effort camera")
    segmented(client, colour_bundle, scene("red"), 10)()  # the image of these never comes
    segmented(client, colour_bundle, scene("red", "green"), 11)()

    def seen() -> bool:
        images.publish(to_image_message(scene("red", "green"), "rgb8", stamped(11)))
        return any(message.header == stamped(11) for message in results)

    client.wait(seen, what="objects of the camera")
    facts = client.perception(lambda facts: "dropped/incomplete" in facts, "the drop", 10, namespace="/lone")
    assert facts["message"] == "their image did not come"
    assert facts["input_problem"] == ""


@pytest.mark.parametrize(
    ("module", "lacks", "reason"),
    [("identification_node", "gallery", "needs a gallery"), ("defects_node", "head", "no defect head")],
)
def test_a_node_that_cannot_do_its_task_stays_unconfigured_and_says_why(
    start_node: Callable[..., Any], client: Any, colour_bundle: Path, module: str, lacks: str, reason: str
) -> None:
    node = start_node(module, namespace=f"/{lacks}", model=str(colour_bundle))
    facts = client.perception(
        lambda facts: bool(facts["last_error"]), "the reason", 60, namespace=f"/{lacks}"
    )
    assert facts["state"] == "unconfigured"
    assert reason in facts["last_error"]
    assert node.stop() == 0
