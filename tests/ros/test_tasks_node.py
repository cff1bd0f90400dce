"""A node per task: together they say what the perception node says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticStatus
from mca_perception_msgs.msg import PerceivedObjects
from mca_perception_msgs.srv import AddProduct, IdentifyPick, InspectPick, SetContainer
from rclpy.duration import Duration
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64, Header
from vision_msgs.msg import Detection2DArray, LabelInfo

from mca_perception.errors import InvalidImageError
from mca_perception.identification import Gallery
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.ros import qos
from mca_perception.ros.conversions import FrameInfo, to_instance_mask, to_perceived_objects
from mca_perception.ros.descriptions import LaunchError, armbench
from mca_perception.ros.diagnostics import drops_in, perception_status
from mca_perception.ros.images import to_image_message
from mca_perception.ros.object_node import objects_of
from mca_perception.ros.parameters import load_schema
from mca_perception.ros.processes import ProcessGroup
from mca_perception.ros.statistics import Statistics
from mca_perception.ros.task_descriptions import task_descriptions
from tests.support.bundles import write_inspecting_bundle

pytestmark = pytest.mark.xdist_group("test_tasks_node")

Scene = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="module")
def inspecting_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "inspecting"
    write_inspecting_bundle(folder)
    return folder


def stamped(seconds: int) -> Header:
    header = Header(frame_id="camera")
    header.stamp.sec = seconds
    return header


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


def answer(
    client: Any, image: NDArray[np.uint8], stamp: int, namespace: str, before: Sequence[str] = ()
) -> PerceivedObjects:
    """Objects of an image, once each node is connected to the next: those `before` the last one, and that one to us."""
    objects = client.collect(PerceivedObjects, f"{namespace}/objects")
    for place in (*(f"{namespace}/{task}" for task in before), namespace):
        client.perception(
            lambda facts: facts["state"] == "active" and facts["objects_subscribers"] == "1",
            f"a reader of {place}/objects",
            60,
            namespace=place,
        )
    publisher = client.publisher(Image, f"{namespace}/image")
    readers = len(before) + 1
    client.wait(lambda: publisher.get_subscription_count() == readers, what="the readers of the images")
    publisher.publish(to_image_message(image, "rgb8", stamped(stamp)))
    return client.wait(lambda: [m for m in objects if m.header == stamped(stamp)], what="objects")[0]


def products(message: PerceivedObjects) -> list[list[tuple[str, float]]]:
    return [
        [(entry.product_id, round(entry.score, 5)) for entry in found.products] for found in message.objects
    ]


def test_three_nodes_in_one_process_say_what_one_node_says(
    start_node: Callable[..., Any],
    client: Any,
    scene: Scene,
    inspecting_bundle: Path,
    colour_references: Path,
) -> None:
    from mca_perception.datasets.armbench import find_references
    from mca_perception.pipeline.references import import_references

    gallery = inspecting_bundle.parent / "products.gallery"
    pipeline = PerceptionPipeline.from_bundle(inspecting_bundle)
    with Gallery.open(gallery, model=pipeline.bundle.embedding_fingerprint) as products_gallery:
        import_references(pipeline, products_gallery, find_references(colour_references))
    common = {"model": str(inspecting_bundle), "gallery": str(gallery), "frame_policy": "every_frame"}
    chain = start_node(
        "tasks_node", namespace="/chain", tasks=["segmentation", "identification", "defects"], **common
    )
    single = start_node("perception_node", namespace="/single", inspection=True, **common)
    image, before = scene("red", "green", "blue"), ("segmentation", "identification")
    split, whole = (answer(client, image, 1, *place) for place in (("/chain", before), ("/single",)))
    assert len(split.objects) == len(whole.objects) == 3
    assert products(split) == products(whole)
    assert all(entry.products for entry in split.objects)
    for one, other in zip(split.objects, whole.objects, strict=True):
        assert (one.mask_id, one.bbox, one.score, one.area) == (
            other.mask_id,
            other.bbox,
            other.score,
            other.area,
        )
        assert one.defect.decision == other.defect.decision
        assert one.defect.probabilities == pytest.approx(other.defect.probabilities, abs=1e-6)
    assert split.model == whole.model
    assert split.timing.identification_ms > 0
    same_names_as_one_node(client, image, before)
    assert chain.stop() == 0, chain.output()
    assert single.stop() == 0, single.output()


def same_names_as_one_node(client: Any, image: NDArray[np.uint8], before: Sequence[str]) -> None:
    """A client of the chain finds services and topics where those of one node would be."""
    set_products = client.call(
        SetContainer, "/chain/set_container", container_id="c", product_ids=["P-red", "P-blue"]
    )
    assert set_products.success, set_products.message
    picture = CompressedImage(format="png", data=cv2.imencode(".png", image[:, :60, ::-1])[1].tobytes())
    for kind, name in ((IdentifyPick, "identify_pick"), (InspectPick, "inspect_pick")):
        found = client.call(kind, f"/chain/{name}", views=[picture])
        assert found.success, found.message
    kinds = {
        "alarms": PerceivedObjects,
        "alarms/heat_map/compressed": CompressedImage,
        "instance_mask": Image,
        "detections": Detection2DArray,
        "debug/processing_ms": Float64,
    }
    heard = {name: client.collect(kind, f"/chain/{name}") for name, kind in kinds.items()}
    labels = client.collect(LabelInfo, "/chain/label_info", qos.LATCHED)
    overlays = client.collect(CompressedImage, "/chain/overlay/compressed")
    client.perception(
        lambda facts: facts["overlay_subscribers"] == "1",
        "a watched overlay",
        namespace="/chain/segmentation",
    )
    limited = answer(client, image, 2, "/chain", before)
    assert limited.container_id == "c"
    assert {name for entry in products(limited) for name, _ in entry} == {"P-red", "P-blue"}
    for name, messages in {**heard, "label_info": labels, "overlay/compressed": overlays}.items():
        client.wait(lambda messages=messages: messages, what=name)
    assert [entry.id for entry in heard["alarms"][0].objects] == [1, 3]  # red and blue

    broken = to_image_message(image, "rgb8", stamped(3))
    broken.encoding = "jpeg"
    client.publisher(Image, "/chain/image").publish(broken)
    facts = client.perception(
        lambda facts: "dropped/segmentation/unsupported_encoding" in facts, "the drop", namespace="/chain"
    )
    assert sum(drops_in(facts).values()) == int(facts["frames_dropped"]) == 1
    assert (facts["frames_received"], facts["frames_processed"]) == ("3", "2")


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


def test_frames_of_which_none_is_processed_are_no_good_sign() -> None:
    statistics = Statistics()
    for cause in ("superseded", "incomplete"):
        statistics.count_received(1)
        statistics.count_drop(cause)
    level, message, _ = perception_status("active", statistics.snapshot(), {})
    assert level == DiagnosticStatus.WARN
    assert message == "2 frames received, none processed; dropped: incomplete 1, superseded 1"
    statistics.count_processed(latency_ms=1, processing_ms=1)
    assert perception_status("active", statistics.snapshot(), {})[0] == DiagnosticStatus.OK


PRODUCTS = ("set_container", "identify_pick", "add_product", "remove_product", "gallery_info")
DEFECTS = ("inspect_pick", "alarms", "alarms/heat_map/compressed")
ALL = {
    *("objects", "instance_mask", "detections", "detections_3d", "object_points", "label_info"),
    *("overlay/compressed", "debug/cyclic_ms", "debug/processing_ms", "debug/pipeline_ms"),
    *(*PRODUCTS, *DEFECTS),
}


@pytest.mark.parametrize(
    ("tasks", "own"),
    [(["identification"], PRODUCTS), (["defects"], DEFECTS), (["identification", "defects"], DEFECTS)],
)
def test_a_name_is_offered_by_one_node_of_the_chain_where_one_node_would(
    tasks: list[str], own: Sequence[str]
) -> None:
    *before, last = task_descriptions("/cell", ["segmentation", *tasks], {})
    assert [node.full_name for node in before] == [f"/cell/{node.name}/{node.name}" for node in before]
    assert last.namespace == "/cell"
    public = [name for node in before for name, target in node.remappings if target == f"/cell/{name}"]
    public = [name for name in public if name not in ("image", "image/compressed", "camera_info", "depth")]
    assert sorted([*public, *own, "objects"]) == sorted(ALL)


def test_depth_and_calibration_reach_the_segmentation_of_a_container() -> None:
    camera = {"image": "/cam/image", "depth": "/cam/depth", "camera_info": "/other/info"}
    (container,) = armbench({"tasks": "container", **camera})
    assert {name: container.parameters[name] for name in camera} == camera
    assert set(container.parameters) <= set(load_schema("tasks"))
    for topic, expected in (("/cam/depth", "/cam/depth"), ("depth_raw", "/cell/depth_raw")):
        segmentation, identification = task_descriptions(
            "/cell", ["segmentation", "identification"], {}, **{**camera, "depth": topic}
        )
        assert dict(segmentation.remappings)["depth"] == expected
        assert dict(segmentation.remappings)["camera_info"] == "/other/info"
        assert dict(identification.remappings)["image"] == "/cam/image"


def test_nodes_in_processes_of_their_own(
    client: Any, scene: Scene, colour_bundle: Path, colour_gallery: Path
) -> None:
    nodes = armbench(
        {
            "namespace": "apart",
            "tasks": "separate",
            "model": str(colour_bundle),
            "gallery": str(colour_gallery),
            "frame_policy": "every_frame",
        }
    )
    lines: list[str] = []
    with ProcessGroup(on_line=lambda name, line: lines.append(f"{name}: {line}")) as group:
        group.start(nodes)
        found = answer(client, scene("red", "blue"), 5, "/apart", ["segmentation"])
    assert [entry.products[0].product_id for entry in found.objects] == ["P-red", "P-blue"], lines


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


@pytest.mark.parametrize("tasks", [[], ["identification"], ["segmentation", "cooking"]])
def test_chains_without_a_beginning_or_with_unknown_tasks(tasks: list[str]) -> None:
    with pytest.raises(LaunchError, match="segmentation among them"):
        task_descriptions("/cell", tasks, {})


def test_a_container_with_unknown_tasks_ends_with_code_2(start_node: Callable[..., Any]) -> None:
    node = start_node("tasks_node", tasks=["cooking"])
    assert node.wait() == 2
    assert "segmentation among them" in node.output()
