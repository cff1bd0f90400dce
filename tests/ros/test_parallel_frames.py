"""Several frames at once over DDS: same answers, same order, nothing lost from the accounts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from mca_perception_msgs.msg import PerceivedObjects
from mca_perception_msgs.srv import LoadModel
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from mca_perception.ros import qos
from mca_perception.ros.images import to_image_message
from tests.support.bundles import write_uneven_bundle

pytestmark = pytest.mark.xdist_group("test_parallel_frames")

Scene = Callable[..., NDArray[np.uint8]]
STAMPS = itertools.count(1)


@pytest.fixture
def client(lasting_client: Any) -> Any:
    return lasting_client


@pytest.fixture(scope="module")
def node(
    start_node: Callable[..., Any],
    lasting_client: Any,
    colour_gallery: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., None]:
    """Configures and activates the node anew: `node(parallel_frames=2)`.

    Its model is slow on every picture of :func:`slow`, and has no memory for white ones.
    """
    bundle = write_uneven_bundle(tmp_path_factory.mktemp("bundle") / "uneven", name="uneven")
    start_node("perception_node", model=str(bundle.path), session="onnxruntime-cpu", input_qos="reliable")
    lasting_client.heard(0)

    def change(transition: int) -> None:
        request = Transition(id=transition)
        assert lasting_client.call(ChangeState, "perception/change_state", transition=request).success

    def configure(**parameters: Any) -> None:
        change(Transition.TRANSITION_DEACTIVATE)
        change(Transition.TRANSITION_CLEANUP)
        set_parameters(lasting_client, **{"model": str(bundle.path), **parameters})
        change(Transition.TRANSITION_CONFIGURE)
        change(Transition.TRANSITION_ACTIVATE)

    return configure


def set_parameters(client: Any, **values: Any) -> None:
    messages = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    answer = client.call(SetParameters, "perception/set_parameters", parameters=messages)
    assert all(result.successful for result in answer.results), answer


def slow(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    marked = picture.copy()
    marked[-1, -1] = 255
    return marked


def connect(client: Any, parallel: int) -> tuple[Any, list[PerceivedObjects]]:
    """A publisher of images that the node reads, and its results from now on."""
    objects = client.collect(PerceivedObjects, "objects", qos.RESULTS)
    client.perception(
        lambda facts: (
            facts["state"] == "active"
            and int(facts["objects_subscribers"]) >= 1
            and facts["parallel_frames"] == str(parallel)
        ),
        "an active node",
    )
    return client.publisher(Image, "image"), objects


def header() -> Header:
    made = Header(frame_id="camera")
    made.stamp.sec = next(STAMPS)
    return made


def counts(client: Any, ready: Callable[[dict[str, str]], bool]) -> dict[str, int]:
    """Frames received, processed and dropped, by cause, once they fulfil a condition."""
    facts = client.perception(ready, "the counts")
    kept = ("frames_", "dropped/")
    return {key: int(value) for key, value in facts.items() if key.startswith(kept)}


def summary(message: PerceivedObjects) -> list[Any]:
    """What a result says, apart from times."""
    return [
        (item.mask_id, item.area, item.score, item.bbox.center.position.x, item.bbox.size_y)
        for item in message.objects
    ]


def test_slow_frames_keep_their_place_and_answers_equal_those_of_one_at_a_time(
    node: Callable[..., None], client: Any, scene: Scene
) -> None:
    pytest.importorskip("scipy")  # tracking
    colours = [("red",), ("red", "green"), ("green", "blue", "red"), ()]
    results = {}
    for parallel in (1, 3):
        node(parallel_frames=parallel, frame_policy="every_frame", tracking=True)
        publisher, objects = connect(client, parallel)
        headers = [header() for _ in range(16)]
        for number, stamped in enumerate(headers):
            picture = scene(*colours[number // 2 % len(colours)])
            publisher.publish(to_image_message(picture if number % 2 else slow(picture), "rgb8", stamped))
            # Of a longer burst the publisher would keep the last ones only.
            client.wait(lambda objects=objects, due=number - 5: len(objects) >= due, what="earlier results")
        client.wait(lambda objects=objects: len(objects) == 16, what="all results")
        assert [message.header for message in objects] == headers
        assert [message.sequence for message in objects] == list(range(16))
        results[parallel] = list(objects)
    serial, parallel_ = ([summary(message) for message in results[count]] for count in (1, 3))
    assert serial == parallel_
    assert any(serial)
    tracks = [[item.id for item in message.objects] for message in results[3]]
    assert tracks[0] == tracks[1]
    assert set(tracks[1]) <= set(tracks[2])
    for message in results[3]:
        timing = message.timing
        in_node = (timing.published.sec - timing.received.sec) * 1e3
        in_node += (timing.published.nanosec - timing.received.nanosec) / 1e6
        assert 0 < timing.processing_ms <= in_node - timing.queue_ms + 1


def test_a_frame_without_memory_costs_neither_order_nor_others(
    node: Callable[..., None], client: Any, scene: Scene
) -> None:
    node(parallel_frames=2, frame_policy="every_frame")
    publisher, objects = connect(client, 2)
    before = counts(client, lambda facts: True)
    headers = [header() for _ in range(9)]
    for number, stamped in enumerate(headers):
        picture = np.full((96, 160, 3), 255, np.uint8) if number % 3 == 1 else slow(scene("red"))
        publisher.publish(to_image_message(picture, "rgb8", stamped))
    client.wait(lambda: len(objects) == 6, what="six results")
    assert [m.header for m in objects] == [stamped for i, stamped in enumerate(headers) if i % 3 != 1]
    after = counts(client, lambda facts: int(facts["frames_processed"]) == before["frames_processed"] + 6)
    assert after["dropped/out_of_memory"] == before.get("dropped/out_of_memory", 0) + 3
    assert after["frames_received"] == after["frames_processed"] + after["frames_dropped"]


def test_live_parameters_and_another_model_between_frames_in_flight(
    node: Callable[..., None], client: Any, scene: Scene, colour_bundle: Path, colour_gallery: Path
) -> None:
    node(parallel_frames=2, frame_policy="every_frame")
    publisher, objects = connect(client, 2)
    headers: list[Header] = []

    def shoot(count: int) -> None:
        for _ in range(count):
            headers.append(header())
            publisher.publish(to_image_message(slow(scene("red", "green")), "rgb8", headers[-1]))

    for is_on in (False, True, False, True):
        shoot(3)
        set_parameters(client, identification=is_on)
    client.wait(lambda: objects, what="a result of the first model")
    set_parameters(client, gallery=str(colour_gallery))
    assert client.call(LoadModel, "load_model", path=str(colour_bundle)).success
    shoot(4)
    client.wait(lambda: len(objects) == len(headers), what="all results")
    assert [m.header for m in objects] == headers
    models = [m.model.partition("@")[0] for m in objects]
    assert (models[0], models[-1]) == ("uneven", "colours")
    assert all(len(m.objects) == 2 for m in objects)
    assert [p.product_id for item in objects[-1].objects for p in item.products[:1]] == ["P-red", "P-green"]
    set_parameters(client, gallery="")


@pytest.mark.parametrize("policy", ["every_frame", "freshest"])
def test_deactivation_in_mid_flight_ends_the_results_and_the_accounts_add_up(
    node: Callable[..., None], client: Any, scene: Scene, policy: str
) -> None:
    node(parallel_frames=4, frame_policy=policy)
    publisher, objects = connect(client, 4)
    before = counts(client, lambda facts: True)
    for _ in range(24):
        publisher.publish(to_image_message(slow(scene("red")), "rgb8", header()))
    client.wait(lambda: objects, what="a first result")
    deactivate = Transition(id=Transition.TRANSITION_DEACTIVATE)
    assert client.call(ChangeState, "perception/change_state", transition=deactivate).success
    after = counts(client, lambda facts: facts["state"] == "inactive")
    count = len(objects)
    assert after["frames_processed"] == before["frames_processed"] + count
    assert after["frames_received"] == after["frames_processed"] + after["frames_dropped"]
    assert after["frames_dropped"] > before["frames_dropped"]
    client.perception(lambda facts: facts["state"] == "inactive", "a further second")
    assert len(objects) == count
    assert [m.sequence for m in objects] == list(range(count))
    activate = Transition(id=Transition.TRANSITION_ACTIVATE)
    assert client.call(ChangeState, "perception/change_state", transition=activate).success
