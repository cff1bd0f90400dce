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

from mca_perception_msgs.msg import PerceivedObjects
from mca_perception_msgs.srv import IdentifyPick, InspectPick, LoadModel, SetContainer
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64
from vision_msgs.msg import Detection2DArray, LabelInfo

from mca_perception.identification import Gallery
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.ros import qos
from mca_perception.ros.descriptions import LaunchError, armbench
from mca_perception.ros.diagnostics import drops_in
from mca_perception.ros.images import to_image_message
from mca_perception.ros.parameters import load_schema
from mca_perception.ros.processes import ProcessGroup
from mca_perception.ros.task_descriptions import task_descriptions
from tests.support.bundles import write_colour_bundle, write_inspecting_bundle
from tests.support.messages import products, stamped

pytestmark = pytest.mark.xdist_group("test_tasks_node")

Scene = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="module")
def inspecting_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "inspecting"
    write_inspecting_bundle(folder)
    return folder


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
    every_node_takes_another_model(client, image, before, inspecting_bundle)
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
        lambda facts: facts["overlay_subscribers"] == "1", "a watched overlay", namespace="/chain"
    )
    limited = answer(client, image, 2, "/chain", before)
    assert limited.container_id == "c"
    assert {name for entry in products(limited) for name, _ in entry} == {"P-red", "P-blue"}
    for name, messages in {**heard, "label_info": labels, "overlay/compressed": overlays}.items():
        client.wait(lambda messages=messages: messages, what=name)
    assert [entry.id for entry in heard["alarms"][0].objects] == [1, 3]  # red and blue
    shown = [
        [result.hypothesis.class_id for result in found.results]
        for found in heard["detections"][0].detections
    ]
    assert shown == [[name for name, _ in entry] or ["Object"] for entry in products(limited)]

    broken = to_image_message(image, "rgb8", stamped(3))
    broken.encoding = "jpeg"
    client.publisher(Image, "/chain/image").publish(broken)
    facts = client.perception(
        lambda facts: "dropped/segmentation/unsupported_encoding" in facts, "the drop", namespace="/chain"
    )
    assert sum(drops_in(facts).values()) == int(facts["frames_dropped"]) == 1
    assert (facts["frames_received"], facts["frames_processed"]) == ("3", "2")


def every_node_takes_another_model(
    client: Any, image: NDArray[np.uint8], before: Sequence[str], bundle: Path
) -> None:
    """Each by its own service, and not one that cannot do its task."""
    other, headless = bundle.parent / "other", bundle.parent / "headless"
    write_inspecting_bundle(other, name="other")
    write_colour_bundle(headless)
    refused = client.call(LoadModel, "/chain/defects/load_model", path=str(headless))
    assert not refused.success
    assert "no defect head" in refused.message
    agreement = {
        "segmentation": "3 objects against 3, 3 of them the same (boxes overlap by 0.5);",
        "identification": "3 with the same product;",
        "defects": "3 in the same condition;",
    }
    for task, line in agreement.items():
        swapped = client.call(LoadModel, f"/chain/{task}/load_model", path=str(other))
        assert swapped.success, swapped.message
        assert line in swapped.message
        assert swapped.model.startswith("other@")
    found = answer(client, image, 4, "/chain", before)
    assert found.model == swapped.model  # one name: that of all three
    assert found.container_id == "c"


ANNOTATIONS = ("detections", "overlay/compressed")
PRODUCTS = ("set_container", "identify_pick", "add_product", "remove_product", "gallery_info")
DEFECTS = ("inspect_pick", "alarms", "alarms/heat_map/compressed")
ALL = {
    *("objects", "instance_mask", "detections_3d", "object_points", "label_info"),
    *("debug/cyclic_ms", "debug/processing_ms", "debug/pipeline_ms"),
    *(*ANNOTATIONS, *PRODUCTS, *DEFECTS),
}


@pytest.mark.parametrize(
    ("tasks", "own"),
    [
        (["identification"], (*ANNOTATIONS, *PRODUCTS)),
        (["defects"], (*ANNOTATIONS, *DEFECTS)),
        (["identification", "defects"], (*ANNOTATIONS, *DEFECTS)),
    ],
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


@pytest.mark.parametrize("tasks", [[], ["identification"], ["segmentation", "cooking"]])
def test_chains_without_a_beginning_or_with_unknown_tasks(tasks: list[str]) -> None:
    with pytest.raises(LaunchError, match="segmentation among them"):
        task_descriptions("/cell", tasks, {})


def test_a_container_with_unknown_tasks_ends_with_code_2(start_node: Callable[..., Any]) -> None:
    node = start_node("tasks_node", tasks=["cooking"])
    assert node.wait() == 2
    assert "segmentation among them" in node.output()
