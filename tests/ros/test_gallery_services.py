"""The product gallery over DDS: products come and go while frames are perceived, and stay after a restart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from mca_perception_msgs.msg import PerceivedObjects
from mca_perception_msgs.srv import AddProduct, GalleryInfo, RemoveProduct, SetContainer
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from mca_perception.identification import Gallery
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.references import reembed
from mca_perception.ros.container_service import ContainerService
from mca_perception.ros.engine import Engine, EngineSlot
from mca_perception.ros.images import to_image_message
from tests.support.bundles import reference_photo, write_colour_bundle

pytestmark = pytest.mark.xdist_group("test_gallery_services")

Scene = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="module")
def gallery_file(colour_gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of the colours that these tests may change."""
    return Path(shutil.copy(colour_gallery, tmp_path_factory.mktemp("gallery") / "own.gallery"))


@pytest.fixture
def client(lasting_client: Any) -> Any:
    return lasting_client


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Any], colour_bundle: Path, gallery_file: Path) -> Any:
    """A perception node that may change its gallery."""
    return start_node(
        "perception_node", model=str(colour_bundle), gallery=str(gallery_file), frame_policy="every_frame"
    )


@pytest.fixture(autouse=True)
def active(request: pytest.FixtureRequest, client: Any) -> None:
    if "node" in request.fixturenames:
        client.perception(lambda facts: facts["state"] == "active", "an active node", timeout=60)


def photo(colour: str) -> CompressedImage:
    encoded = cv2.imencode(".png", reference_photo(colour)[..., ::-1])[1]
    return CompressedImage(format="png", data=encoded.tobytes())


@pytest.fixture
def products(node: Any, client: Any, scene: Scene) -> Callable[[int], list[str]]:
    """Publishes a picture of something red: `products(stamp)` are those of its only object, best first."""
    objects = client.collect(PerceivedObjects, "objects")
    publisher = client.publisher(Image, "image")
    client.heard()

    def publish(stamp: int) -> list[str]:
        header = Header(frame_id="camera")
        header.stamp.sec = stamp
        publisher.publish(to_image_message(scene("red"), "rgb8", header))
        found = client.wait(lambda: [m for m in objects if m.header == header], what="objects")[0]
        (item,) = found.objects
        return [product.product_id for product in item.products]

    return publish


def test_a_product_added_is_found_in_the_next_frame_and_on_disk(
    client: Any, products: Callable[[int], list[str]], gallery_file: Path
) -> None:
    assert client.call(
        SetContainer, "set_container", container_id="bin", product_ids=["new", "P-blue"]
    ).success
    assert products(1) == ["P-blue"]
    answer = client.call(AddProduct, "add_product", product_id="new", references=[photo("red")])
    assert (answer.success, answer.message, answer.replaced, answer.product_count) == (True, "", False, 4)
    with Gallery.open(gallery_file, create=False) as stored:
        assert "new" in stored.products()
        assert isinstance(stored.images(["new"])["new"][0], bytes)  # can be embedded again by another model
    assert products(2) == ["new", "P-blue"]
    client.perception(lambda facts: facts["container_unknown_products"] == "0", "the recounted container")
    answer = client.call(
        AddProduct, "add_product", product_id="new", references=[photo("green"), photo("red")]
    )
    assert (answer.success, answer.replaced, answer.product_count) == (True, True, 4)
    answer = client.call(RemoveProduct, "remove_product", product_id="new")
    assert (answer.success, answer.product_count) == (True, 3)
    assert products(3) == ["P-blue"]
    with Gallery.open(gallery_file, create=False) as stored:
        assert "new" not in stored.products()


def embed_again(gallery: Path, model: Path) -> None:
    """As `mca gallery reembed` does, in place."""
    with Gallery.open(gallery, create=False) as opened:
        assert reembed(PerceptionPipeline.from_bundle(model), opened).products == 3


def test_a_gallery_embedded_again_for_another_model_costs_products_until_it_fits_again(
    node: Any,
    client: Any,
    products: Callable[[int], list[str]],
    gallery_file: Path,
    colour_bundle: Path,
    tmp_path: Path,
) -> None:
    assert client.call(SetContainer, "set_container", product_ids=[]).success
    assert products(11)[:1] == ["P-red"]
    other = write_colour_bundle(tmp_path / "other", identification={"margin": 0.4})
    embed_again(gallery_file, other.path)
    facts = client.perception(lambda facts: facts["gallery_problem"] != "", "the problem")
    assert f"now holds embeddings of model {other.embedding_fingerprint}" in facts["gallery_problem"]
    assert facts["message"].startswith("objects carry no products: gallery ")
    assert products(12) == []
    answer = client.call(SetContainer, "set_container", container_id="bin", product_ids=["P-red"])
    assert not answer.success
    assert "now holds embeddings" in answer.message
    embed_again(gallery_file, colour_bundle)
    assert products(13)[:1] == ["P-red"]
    facts = client.perception(lambda facts: facts["gallery_problem"] == "", "a gallery that fits again")
    assert facts["gallery_products"] == "3"
    assert "dropped/processing_failed" not in facts
    assert node.process.poll() is None


def test_a_container_keeps_its_limit_when_it_cannot_be_counted_again(
    ros_domain: int, colour_bundle: Path, gallery_file: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copy(gallery_file, tmp_path / "own.gallery"))
    engine = Engine(colour_bundle, gallery=own)
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    node = rclpy.create_node("recounts", context=context)
    reported: list[Exception] = []
    service = ContainerService(node, EngineSlot(engine), report=reported.append)
    request = SetContainer.Request(container_id="bin", product_ids=["P-red"])
    assert service._set(request, SetContainer.Response()).success
    embed_again(own, write_colour_bundle(tmp_path / "other", identification={"margin": 0.4}).path)
    service.recount()
    assert service.container.product_ids == ("P-red",)
    assert "now holds embeddings" in str(reported[0])
    node.destroy_node()
    rclpy.shutdown(context=context)
    engine.close()


def test_info_lists_ids_page_by_page(node: Any, client: Any, gallery_file: Path) -> None:
    first = client.call(GalleryInfo, "gallery_info", limit=2)
    assert first.success
    assert (first.path, first.product_count, first.reference_count) == (str(gallery_file), 3, 3)
    assert first.dimension > 0
    assert first.model
    assert first.product_ids == ["P-blue", "P-green"]
    rest = client.call(GalleryInfo, "gallery_info", after="P-green", limit=2)
    assert rest.product_ids == ["P-red"]
    assert client.call(GalleryInfo, "gallery_info").product_ids == []


@pytest.mark.parametrize(
    ("kind", "service", "request_", "message"),
    [
        (AddProduct, "add_product", {"product_id": "none"}, "comes with 0 references; give 1 to 32"),
        (
            AddProduct,
            "add_product",
            {"product_id": " ", "references": ["red"]},
            "product id ' ' is not valid",
        ),
        (
            AddProduct,
            "add_product",
            {"product_id": "bad", "references": ["red", b"no image"]},
            "neither JPEG nor PNG",
        ),
        (AddProduct, "add_product", {"product_id": "many", "references": ["red"] * 33}, "33 references"),
        (RemoveProduct, "remove_product", {"product_id": "unheard-of"}, "no product 'unheard-of'"),
        (GalleryInfo, "gallery_info", {"limit": 20_000}, "at most 10000"),
    ],
)
def test_bad_requests_are_answered_and_change_nothing(
    node: Any, client: Any, kind: Any, service: str, request_: dict[str, Any], message: str
) -> None:
    if "references" in request_:
        pictures = [
            CompressedImage(data=r) if isinstance(r, bytes) else photo(r) for r in request_["references"]
        ]
        request_ = {**request_, "references": pictures}
    answer = client.call(kind, service, **request_)
    assert not answer.success
    assert message in answer.message
    assert client.call(GalleryInfo, "gallery_info").product_count == 3


def test_without_a_gallery_the_services_say_so(
    start_node: Callable[..., Any], colour_bundle: Path, client: Any
) -> None:
    process = start_node("perception_node", namespace="/bare", model=str(colour_bundle))
    client.perception(lambda facts: facts["state"] == "active", "an active node", 60, namespace="/bare")
    answer = client.call(GalleryInfo, "/bare/gallery_info")
    assert not answer.success
    assert "parameter gallery" in answer.message
    assert process.stop() == 0, process.output()
