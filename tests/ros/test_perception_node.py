"""The perception node as a process, seen from outside over DDS."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time
from mca_perception_msgs.msg import PerceivedObjects
from mca_perception_msgs.srv import LoadModel, SetContainer
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, LabelInfo

from mca_perception.identification import Gallery
from mca_perception.ros import qos
from mca_perception.ros.images import decode_compressed, to_compressed_message, to_image_message
from tests.support.bundles import write_colour_bundle

pytestmark = pytest.mark.xdist_group("test_perception_node")

Scene = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def client(lasting_client: Any) -> Any:
    return lasting_client


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Any], colour_bundle: Path, colour_gallery: Path) -> Any:
    """A perception node that queues every frame."""
    return start_node(
        "perception_node", model=str(colour_bundle), gallery=str(colour_gallery), frame_policy="every_frame"
    )


def header(seconds: int, nanoseconds: int = 0) -> Header:
    return Header(stamp=Time(sec=seconds, nanosec=nanoseconds), frame_id="tote_camera")


def test_all_outputs_agree_about_one_frame(node: Any, client: Any, scene: Scene) -> None:
    detections = client.collect(Detection2DArray, "detections")
    masks = client.collect(Image, "instance_mask")
    labels = client.collect(LabelInfo, "label_info", qos.LATCHED)
    objects = client.collect(PerceivedObjects, "objects")
    client.heard()
    publisher = client.publisher(CompressedImage, "image/compressed")
    publisher.publish(to_compressed_message(scene("red", "green", "blue"), header(50, 7), quality=100))
    client.wait(lambda: objects and detections and masks and labels, what="all outputs")
    result, array, mask = objects[0], detections[0], masks[0]
    assert result.header == array.header == mask.header == header(50, 7)
    assert (result.image_width, result.image_height) == (mask.width, mask.height) == (160, 96)
    assert result.model.startswith("colours@")
    pixels = np.frombuffer(mask.data, "<u2").reshape(96, 160)
    assert set(np.unique(pixels)) == {0, *(item.mask_id for item in result.objects)}
    assert len(result.objects) == len(array.detections) == 3
    for item, detection in zip(result.objects, array.detections, strict=True):
        assert detection.id == str(item.mask_id)
        ys, xs = np.nonzero(pixels == item.mask_id)
        assert item.area == len(xs)
        box, centre = item.bbox, item.bbox.center.position
        assert (centre.x - box.size_x / 2, centre.x + box.size_x / 2) == (xs.min(), xs.max() + 1)
        assert (centre.y - box.size_y / 2, centre.y + box.size_y / 2) == (ys.min(), ys.max() + 1)
        assert (item.centroid.x, item.centroid.y) == pytest.approx(
            (xs.mean() + 0.5, ys.mean() + 0.5), abs=1e-6
        )
        assert detection.bbox == box
        assert detection.results[0].hypothesis.class_id == item.products[0].product_id
        assert item.label in [entry.class_name for entry in labels[0].class_map]
    assert [item.score for item in result.objects] == sorted((i.score for i in result.objects), reverse=True)


def test_the_overlay_is_drawn_only_while_somebody_looks(node: Any, client: Any, scene: Scene) -> None:
    objects = client.collect(PerceivedObjects, "objects")
    before = client.perception(
        lambda facts: facts["overlay_subscribers"] == "0" and facts["objects_subscribers"] == "1",
        "an active node",
    )
    publisher = client.publisher(Image, "image")
    publisher.publish(to_image_message(scene("red"), "rgb8", header(60)))
    client.wait(lambda: objects, what="objects")
    # The overlay's turn comes after that of the objects; counted frames are through.
    processed = int(before["frames_processed"]) + 1
    client.perception(lambda facts: facts["frames_processed"] == str(processed), "a frame that is through")
    overlays = client.collect(CompressedImage, "overlay/compressed")
    client.perception(lambda facts: facts["overlay_subscribers"] == "1", "the overlay's subscriber")
    publisher.publish(to_image_message(scene("blue"), "rgb8", header(61)))
    client.wait(lambda: overlays, what="an overlay")
    assert [overlay.header for overlay in overlays] == [header(61)]
    assert decode_compressed(overlays[0]).shape == (576, 960, 3)
    drawn = int(before["overlays_drawn"]) + 1
    client.perception(lambda facts: facts["overlays_drawn"] == str(drawn), "one drawn overlay")


def test_the_container_limits_the_products(node: Any, client: Any, scene: Scene) -> None:
    objects = client.collect(PerceivedObjects, "objects")
    client.heard()
    publisher = client.publisher(Image, "image")

    def products(stamp: int) -> tuple[str, list[list[str]]]:
        publisher.publish(to_image_message(scene("red"), "rgb8", header(stamp)))
        found = client.wait(lambda: [m for m in objects if m.header == header(stamp)], what="objects")[0]
        return found.container_id, [[p.product_id for p in item.products] for item in found.objects]

    answer = client.call(
        SetContainer, "set_container", container_id="bin-4", product_ids=["P-blue", "unheard-of", "P-blue"]
    )
    assert answer.success
    assert answer.unknown_products == ["unheard-of"]
    assert "1 of 2" in answer.message
    assert products(70) == ("bin-4", [["P-blue"]])
    client.perception(
        lambda facts: facts["container_id"] == "bin-4" and facts["container_unknown_products"] == "1",
        "the container",
    )
    answer = client.call(SetContainer, "set_container", container_id="bin-5", product_ids=["unheard-of"])
    assert answer.success
    assert products(71) == ("bin-5", [[]])
    refused = client.call(SetContainer, "set_container", container_id="bin-6", product_ids=["x" * 300])
    assert not refused.success
    assert "300 characters" in refused.message
    assert products(72)[0] == "bin-5"
    assert client.call(SetContainer, "set_container").success
    container, (ranked,) = products(73)
    assert container == ""
    assert ranked[0] == "P-red"
    assert len(ranked) == 3


def test_live_parameters_take_effect_on_the_next_frame(node: Any, client: Any, scene: Scene) -> None:
    masks = client.collect(Image, "instance_mask")
    labels = client.collect(LabelInfo, "label_info", qos.LATCHED)
    objects = client.collect(PerceivedObjects, "objects")
    client.heard()
    publisher = client.publisher(Image, "image")

    def set_parameters(**values: Any) -> list[Any]:
        messages = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        return list(client.call(SetParameters, "perception/set_parameters", parameters=messages).results)

    assert all(r.successful for r in set_parameters(top_k=1, publish_mask=False, score_threshold=0.92))
    client.wait(lambda: labels and abs(labels[-1].threshold - 0.92) < 1e-6, what="the new threshold")
    publisher.publish(to_image_message(scene("red", "green"), "rgb8", header(80)))
    client.wait(lambda: objects, what="objects")
    assert [[p.product_id for p in item.products] for item in objects[0].objects] == [["P-red"]]
    (refused,) = set_parameters(model="models/other")
    assert not refused.successful
    assert "unconfigured" in refused.reason
    (refused,) = set_parameters(tiles="2,x")
    assert not refused.successful
    assert "tiles are '2,x'" in refused.reason
    assert all(r.successful for r in set_parameters(top_k=5, publish_mask=True, score_threshold=-1.0))
    publisher.publish(to_image_message(scene("red", "green"), "rgb8", header(81)))
    client.wait(lambda: len(objects) == 2, what="objects")
    assert len(objects[1].objects) == 2
    client.wait(lambda: [mask for mask in masks if mask.header == header(81)], what="a mask")
    assert not [mask for mask in masks if mask.header == header(80)]
    assert all(r.successful for r in set_parameters(tiles="2", tiles_from_objects=0))
    publisher.publish(to_image_message(scene("red", "green"), "rgb8", header(82)))
    client.wait(lambda: len(objects) == 3, what="objects seen in tiles, too")
    assert [[p.product_id for p in item.products][:1] for item in objects[2].objects] == [
        ["P-red"],
        ["P-green"],
    ]
    assert all(r.successful for r in set_parameters(tiles=""))


def test_only_wanted_classes_are_published(
    start_node: Callable[..., Any], client: Any, scene: Scene, colour_bundle: Path, tmp_path: Path
) -> None:
    write_colour_bundle(
        tmp_path / "two", segmentation={"input_size": (96, 160), "labels": ["Object", "Parcel"]}
    )
    start_node(
        "perception_node", namespace="/choosy", model=str(tmp_path / "two"), frame_policy="every_frame"
    )
    objects = client.collect(PerceivedObjects, "/choosy/objects")
    client.perception(
        lambda facts: facts["state"] == "active" and facts["objects_subscribers"] == "1",
        "the node",
        60,
        namespace="/choosy",
    )
    for number, (classes, expected) in enumerate([(["Parcel"], 0), (["Object"], 2), ([""], 2)]):
        wanted = Parameter("classes", Parameter.Type.STRING_ARRAY, classes).to_parameter_msg()
        (result,) = client.call(
            SetParameters, "/choosy/perception/set_parameters", parameters=[wanted]
        ).results
        assert result.successful, result.reason
        client.publisher(Image, "/choosy/image").publish(
            to_image_message(scene("red", "green"), "rgb8", header(number + 1))
        )
        client.wait(lambda number=number: len(objects) == number + 1, what="objects")
        assert len(objects[number].objects) == expected
    only = Parameter("classes", value=["Parcel"]).to_parameter_msg()
    client.call(SetParameters, "/choosy/perception/set_parameters", parameters=[only])
    answer = client.call(LoadModel, "/choosy/load_model", path=str(colour_bundle))
    assert not answer.success
    assert "has no objects of class Parcel" in answer.message
    unknown = Parameter("classes", value=["Bottle"]).to_parameter_msg()
    (refused,) = client.call(SetParameters, "/choosy/perception/set_parameters", parameters=[unknown]).results
    assert not refused.successful
    assert "has no objects of class Bottle; choose from Object, Parcel" in refused.reason


def test_a_frame_on_both_transports_is_processed_once(node: Any, client: Any, scene: Scene) -> None:
    objects = client.collect(PerceivedObjects, "objects")
    client.heard()
    raw, compressed = client.publisher(Image, "image"), client.publisher(CompressedImage, "image/compressed")
    for seconds in (90, 91):
        raw.publish(to_image_message(scene("red"), "rgb8", header(seconds)))
        compressed.publish(to_compressed_message(scene("red"), header(seconds)))
    client.perception(lambda facts: facts.get("dropped/duplicate") == "2", "two duplicates")
    client.wait(lambda: len(objects) == 2, what="two results")
    assert sorted(m.header.stamp.sec for m in objects) == [90, 91]


def test_every_frame_of_a_burst_is_processed_in_order(node: Any, client: Any, scene: Scene) -> None:
    objects = client.collect(PerceivedObjects, "objects", qos.RESULTS)
    client.heard()
    publisher = client.publisher(Image, "image")
    for seconds in range(100, 112):
        publisher.publish(to_image_message(scene("green"), "rgb8", header(seconds)))
    client.wait(lambda: len(objects) >= 12, what="twelve results")
    assert [m.header.stamp.sec for m in objects] == list(range(100, 112))
    numbers = [m.sequence for m in objects]
    assert numbers == list(range(numbers[0], numbers[0] + 12))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_node_cleanly(
    start_node: Callable[..., Any], client: Any, colour_bundle: Path, number: int
) -> None:
    node = start_node("perception_node", namespace=f"/stop{number}", model=str(colour_bundle))
    publisher = client.node.create_publisher(Image, f"/stop{number}/image", 1)
    client.wait(publisher.get_subscription_count, what="the node")
    assert node.stop(number) == 0
    assert "Traceback" not in node.output()


def test_freshest_drops_and_counts_what_it_cannot_keep_up_with(
    start_node: Callable[..., Any], colour_bundle: Path, client: Any
) -> None:
    start_node("perception_node", namespace="/camera", model=str(colour_bundle), input_qos="reliable")
    publisher = client.node.create_publisher(Image, "/camera/image", qos.IMAGE_OUTPUT)
    objects = client.collect(PerceivedObjects, "/camera/objects", qos.RESULTS)
    message = to_image_message(np.full((1500, 2000, 3), 127, np.uint8), "rgb8", header(1))
    timer = client.node.create_timer(0.005, lambda: publisher.publish(message))
    client.perception(
        lambda facts: int(facts.get("dropped/superseded", 0)) > 0, "a superseded frame", namespace="/camera"
    )
    client.node.destroy_timer(timer)
    client.wait(lambda: objects, what="a result in spite of the drops")


def test_with_an_empty_gallery_objects_come_without_products(
    start_node: Callable[..., Any], colour_bundle: Path, client: Any, scene: Scene, tmp_path: Path
) -> None:
    Gallery.open(tmp_path / "empty.gallery").close()
    start_node(
        "perception_node",
        namespace="/empty",
        model=str(colour_bundle),
        gallery=str(tmp_path / "empty.gallery"),
        frame_policy="every_frame",
    )
    objects = client.collect(PerceivedObjects, "/empty/objects")
    publisher = client.node.create_publisher(Image, "/empty/image", qos.IMAGE_OUTPUT)
    client.wait(lambda: publisher.get_subscription_count() and client.node.count_publishers("/empty/objects"))
    answer = client.call(SetContainer, "/empty/set_container", container_id="c", product_ids=["P-red"])
    assert answer.unknown_products == ["P-red"]
    client.wait(lambda: publisher.publish(to_image_message(scene("red"), "rgb8", header(1))) or objects)
    assert [len(item.products) for item in objects[0].objects] == [0]
